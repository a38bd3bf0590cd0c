"""Guard against removals that the user did not intend: an unmounted disk, a wrong folder, a deletion in progress."""

import time
from dataclasses import dataclass

from shared.db import Connection
from shared.ledger import documents, sources
from shared.ledger.documents import LedgerRow
from worker.source.folder import FolderSource

GUARDED_FILES = 20  # as many removals are a mass removal: it must be stable for longer, and its share is checked
STILL_SECONDS, LONGEST_SECONDS = 0.3, 3.0  # removals are applied once stable for so long, or pending for so long
MASS_STILL_SECONDS, MASS_LONGEST_SECONDS = 1.0, 60.0


class NeedsConfirmation(Exception):
    """The scan must not be applied until a person confirms it; the message gives the reason."""


@dataclass
class Guard:
    """Decides when the removals of a scan may be applied. `percent`: share of documents that may go unconfirmed."""

    connection: Connection
    source: FolderSource
    source_id: int
    percent: int
    _count: int = 0  # removals pending
    _since: float = 0.0  # time of the last change of their number
    _first: float = 0.0  # time of the first pending removal

    def is_pending(self, gone: list[LedgerRow]) -> bool:
        """Return True while more removals may follow: the number of missing documents changed a moment ago."""
        now = time.monotonic()
        if gone:
            if self._count != len(gone):
                self._since, self._first = now, self._first if self._count else now
                self._count = len(gone)
            still, longest = STILL_SECONDS, LONGEST_SECONDS
            if len(gone) >= GUARDED_FILES:
                still, longest = MASS_STILL_SECONDS, MASS_LONGEST_SECONDS
            if now - self._since < still and now - self._first < longest:
                return True
        self._count = 0
        return False

    def check(self, gone: list[LedgerRow], files: int, identity: str, is_full: bool) -> None:
        """Raise NeedsConfirmation if the root was replaced by a folder without the documents, or too many are gone.

        `files`: number of files found; `identity`: of the root; `is_full`: the scan covered all of it.
        """
        lost = [row for row in gone if not self.source.rules.ignores(row.key)]  # ignore rules are the user's decision
        if not lost:
            return
        total = documents.total(self.connection, self.source_id)
        advice = "Nothing was changed. If the removal is intended, run: askfolder reconcile --confirm"
        known = sources.identity(self.connection, self.source_id)
        if is_full and len(lost) == total and known not in (None, identity):
            raise NeedsConfirmation(
                f"The folder {self.source.root} is not the same folder as before (unmounted, or replaced), and it "
                f"contains none of the {total} documents. {advice}"
            )
        if len(lost) >= GUARDED_FILES and len(lost) * 100 > total * self.percent:
            raise NeedsConfirmation(
                f"{len(lost)} of the {total} documents of {self.source.root} are gone, more than {self.percent} % "
                f"(ASKFOLDER_GUARD_PERCENT); {files} files remain. {advice}"
            )
