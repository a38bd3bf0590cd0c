"""The scan: what a source holds against the ledger. It is the truth; events only make it come sooner."""

import contextlib
import time
from collections.abc import Callable

from shared.db import Connection
from shared.errors import AskfolderError, PermanentError
from shared.ledger import documents, generations, sources
from shared.ledger.documents import LedgerRow
from shared.log import log
from shared.settings import Settings
from worker.indexing import index
from worker.source.folder import FolderSource, FoundFile
from worker.source.guard import GUARDED_FILES, SECOND_LOOK_SECONDS, STILL_SECONDS, NeedsConfirmation

SETTLE_SECONDS = 0.4  # a file is taken when size and mtime have stood still for so long …
UNSURE_SECONDS = 1.5  # … or for so long, where it cannot be told whether somebody has it open for writing
SETTLED_AGE = 5.0  # … or at once, when it was last written so long ago
HELD_OPEN_SECONDS = 60.0  # a file that a program keeps open, and leaves as it is for so long, is taken all the same
CROWD = 50  # the newest of many new files; the others let them, and what comes later, pass by
BATCH = 2000  # files queued in one transaction


class Scanner:
    """Brings the ledger of one source up to what is there. `unwatched`: what is not watched of so many folders, in words.
    `meanwhile`: called again and again while a large scan is carried out.

    `again`: keys to be looked at again soon. `held`: the last full scan was not carried out. `blind`: not everything is watched.
    """

    def __init__(
        self,
        settings: Settings,
        connection: Connection,
        source: FolderSource,
        unwatched: Callable[[int], str | None],
        meanwhile: Callable[[], object] = lambda: None,
    ) -> None:
        self.settings = settings
        self.connection = connection
        self.source = source
        self.source_id = sources.source(connection, source.kind, str(source.root))
        self.unwatched = unwatched
        self.meanwhile = meanwhile
        self.again: set[str] = set()
        self.unsettled: dict[str, tuple[str, float]] = {}  # key → (revision, since when it has it)
        self.removals: tuple[int, float, float] = (0, 0.0, 0.0)  # how many, since when, since when there are any
        self.held = self.blind = False

    def scan(self, below: set[str] | None = None, confirmed: bool = False, rehash: bool = False) -> None:
        """Compares the source, or what lies at and below some keys, with the ledger: new, changed, renamed, gone.

        `confirmed`: the delete guard lets it pass. `rehash`: files whose size and time stand are read too.
        """
        try:
            listing = self.source.discover(below)
            identity = self.source.identity()
        except PermanentError as error:
            self._stop(str(error))
            return
        ledger = documents.known(self.connection, self.source_id, below)
        found = {file.key: file for file in listing.found}
        self.unsettled = {key: value for key, value in self.unsettled.items() if key in found}
        missing = [
            row
            for key, row in ledger.items()
            if key not in found
            and row.state != "deleted"
            and not any(key == c or key.startswith(f"{c}/") for c in listing.closed)
        ]
        changed = [
            file
            for key, file in found.items()
            if (row := ledger.get(key)) is None or row.state == "deleted" or row.wanted_revision != file.revision
        ]
        renamed = self._renamed([file for file in changed if file.key not in ledger], missing, found)
        gone = [row for row in missing if row.id not in renamed]
        if not confirmed:
            if self._looks_again(gone):
                self.again |= below or {""}
                return
            try:
                self._guard(gone, len(found), identity, below is None)
            except NeedsConfirmation as held:
                self._stop(str(held))
                return
        active = generations.active(self.connection) if renamed else []
        for document_id, file in renamed.items():
            with self.connection.transaction():
                documents.move(self.connection, document_id, file.key, file.revision)
                index.rename(self.connection, active, document_id)
        taken = {file.key for file in renamed.values()}
        new = sorted((f for f in changed if f.key not in taken and self._settled(f)), key=lambda f: -f.modified)
        rows = [(file.key, file.revision, file.size) for file in new]
        documents.enqueue(self.connection, self.source_id, rows[:CROWD])
        for start in range(CROWD, len(rows), BATCH):
            self.meanwhile()
            documents.enqueue(self.connection, self.source_id, rows[start : start + BATCH], bulk=True)
        documents.delete(self.connection, [row.id for row in gone])
        if rehash:
            documents.rebuild(
                self.connection, [row.id for key, row in ledger.items() if self._altered(found.get(key), row)]
            )
        counts = {"files": len(found), "changed": len(new), "renamed": len(renamed), "gone": len(gone)}
        if below is None:
            self._scanned(identity, listing.closed, listing.folders, counts)
        if new or renamed or gone:
            log.info(
                f"{len(new)} new or changed, {len(renamed)} renamed, {len(gone)} gone", action="scan.done", **counts
            )

    def _settled(self, file: FoundFile) -> bool:
        """Whether a new or changed file is whole, as far as can be told."""
        now = time.monotonic()
        was, since = self.unsettled.get(file.key, ("", now))
        if was != file.revision:
            since = now
        written = self.source.being_written(file.key)
        needed = {True: HELD_OPEN_SECONDS, False: SETTLE_SECONDS, None: UNSURE_SECONDS}[written]
        if now - since >= needed or (not written and time.time() - file.modified > SETTLED_AGE):
            self.unsettled.pop(file.key, None)
            return True
        self.unsettled[file.key] = (file.revision, since)
        return False

    def _altered(self, file: FoundFile | None, row: LedgerRow) -> bool:
        """Whether a file that looks as it did (size and time) holds other bytes, or was read before metadata was looked for."""
        with contextlib.suppress(AskfolderError):
            return (
                file is not None
                and file.revision == row.live_revision
                and row.live_sha256 is not None
                and (not row.metadata_read or self.source.hash(file.key) != row.live_sha256)
            )
        return False

    def _renamed(
        self, new: list[FoundFile], missing: list[LedgerRow], found: dict[str, FoundFile]
    ) -> dict[int, FoundFile]:
        """Document id → the new file that has the bytes of a document that is gone."""
        renamed: dict[int, FoundFile] = {}
        gone = {row.id for row in missing}
        twins = documents.same_size(self.connection, self.source_id, {file.size for file in new}) if new else {}
        for file in new:
            candidates = [
                twin
                for twin in twins.get(file.size, ())
                if twin.id not in renamed and (twin.id in gone or (twin.state == "deleted" and twin.key not in found))
            ]
            with contextlib.suppress(AskfolderError):
                digest = self.source.hash(file.key) if candidates else b""
                if twin := next((twin for twin in candidates if twin.live_sha256 == digest), None):
                    renamed[twin.id] = file
        return renamed

    # --- the delete guard ---

    def _guard(self, gone: list[LedgerRow], files: int, identity: str, whole: bool) -> None:
        """Raises Held when so much would be removed that something else than a person's tidying may be behind it."""
        lost = [row for row in gone if not self.source.ignores(row.key)]  # an ignore rule is a person's will
        if not lost:
            return
        total = documents.total(self.connection, self.source_id)
        go_on = "Nothing was changed. If that is right, run: askfolder reconcile --confirm"
        known = sources.identity(self.connection, self.source_id)
        if whole and len(lost) == total and known not in (None, identity):
            raise NeedsConfirmation(
                f"The folder {self.source.root} is another one than before (unmounted, or replaced), and none of its {total} documents "
                f"is in it. {go_on}"
            )
        if len(lost) >= GUARDED_FILES and len(lost) * 100 > total * self.settings.guard_percent:
            raise NeedsConfirmation(
                f"{len(lost)} of the {total} documents of {self.source.root} are gone, more than {self.settings.guard_percent} % "
                f"(ASKFOLDER_GUARD_PERCENT); {files} files are there. {go_on}"
            )

    def _looks_again(self, gone: list[LedgerRow]) -> bool:
        """Removals are carried out only when they stand still: they may be the beginning of more. But not for ever."""
        now, (count, since, first) = time.monotonic(), self.removals
        if not gone:
            self.removals = (0, now, now)
            return False
        if count != len(gone):
            since, first = now, first if count else now
            self.removals = (len(gone), since, first)
        still, longest = (SECOND_LOOK_SECONDS, 60.0) if len(gone) >= GUARDED_FILES else (STILL_SECONDS, 3.0)
        if now - since < still and now - first < longest:
            return True
        self.removals = (0, now, now)
        return False

    def _stop(self, problem: str) -> None:
        if not self.held:
            log.error(problem, action="scan.stopped")
        self.held = True
        sources.stopped(self.connection, self.source_id, problem)

    def _scanned(self, identity: str, closed: list[str], folders: int, counts: dict[str, int]) -> None:
        self.held = False
        problems = [self.unwatched(folders)]
        if closed:
            problems.append(f"Some folders cannot be read and were left as they are: {', '.join(closed[:5])}")
        self.blind = problems[0] is not None
        problem = " ".join(problem for problem in problems if problem) or None
        sources.scanned(self.connection, self.source_id, identity, problem, counts)
