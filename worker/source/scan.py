"""The scan: compare a source with the ledger. Scans are authoritative; events only make them run sooner."""

import contextlib
import time
from collections.abc import Callable, Sequence

from shared.db import Connection
from shared.errors import AskfolderError, PermanentError
from shared.ledger import documents, generations, sources
from shared.ledger.documents import LedgerRow
from shared.ledger.generations import Generation
from shared.log import log
from shared.settings import Settings
from worker.source.file_system import being_written
from worker.source.folder import FolderSource, FoundFile, Listing
from worker.source.guard import Guard, NeedsConfirmation
from worker.source.paths import ancestors

# A file is enqueued when size and mtime did not change for so long:
SETTLE_SECONDS = 0.4
UNSURE_SECONDS = 1.5  # if the system cannot tell whether a process is writing it
HELD_OPEN_SECONDS = 60.0  # if a process has it open for writing
SETTLED_AGE = 5.0  # and at once if it was last written so long ago
CROWD = 50  # the newest of many new files; the others queue behind whatever is dropped later
BATCH = 2000  # files queued in one transaction

Rename = Callable[[Connection, Sequence[Generation], int], None]


class Scanner:
    """Updates the ledger of one source.

    `unwatched` returns a sentence about the part of so many folders that is not watched; `rename` updates the index
    after a document was renamed; `meanwhile` is called repeatedly during a large scan.
    `again`: keys to scan again soon. `stopped`: the last full scan was not applied.
    """

    def __init__(
        self,
        settings: Settings,
        connection: Connection,
        source: FolderSource,
        unwatched: Callable[[int], str | None],
        rename: Rename,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> None:
        self.connection = connection
        self.source = source
        self.source_id = sources.source(connection, source.kind, str(source.root))
        self.guard = Guard(connection, source, self.source_id, settings.guard_percent)
        self.unwatched = unwatched
        self.rename = rename
        self.meanwhile = meanwhile
        self.again: set[str] = set()
        self.unsettled: dict[str, tuple[str, float]] = {}  # key → (revision, since when)
        self.stopped = self.partly_watched = False

    def scan(self, below: set[str] | None = None, confirmed: bool = False, rehash: bool = False) -> None:
        """Compare the source, or its part at and below some keys, with the ledger, and apply the differences.

        `confirmed`: skip the guard against removals. `rehash`: read files too whose size and mtime are unchanged.
        """
        try:
            listing, identity = self.source.discover(below), self.source.identity()
        except PermanentError as error:
            self._stop(str(error))
            return
        files = {file.key: file for file in listing.files}
        ledger = documents.known(self.connection, self.source_id, below)
        missing = _missing(ledger, files, listing.closed)
        changed = _changed(ledger, files)
        renamed = self._renamed([file for file in changed if file.key not in ledger], missing, files)
        gone = [row for row in missing if row.id not in renamed]
        self.unsettled = {key: value for key, value in self.unsettled.items() if key in files}
        if not confirmed:
            if self.guard.is_pending(gone):
                self.again |= below or {""}
                return
            try:
                self.guard.check(gone, len(files), identity, below is None)
            except NeedsConfirmation as reason:
                self._stop(str(reason))
                return
        self._apply_renamed(renamed)
        targets = {file.key for file in renamed.values()}
        queued = self._enqueue([file for file in changed if file.key not in targets and self._is_settled(file)])
        documents.delete(self.connection, [row.id for row in gone])
        if rehash:
            altered = [row.id for key, row in ledger.items() if self._is_altered(files.get(key), row)]
            documents.rebuild(self.connection, altered)
        counts = {"files": len(files), "changed": queued, "renamed": len(renamed), "gone": len(gone)}
        self._report(listing if below is None else None, identity, counts)

    def _renamed(
        self, new: list[FoundFile], missing: list[LedgerRow], files: dict[str, FoundFile]
    ) -> dict[int, FoundFile]:
        """Return document id → new file with the same content, for documents whose own file is gone."""
        renamed: dict[int, FoundFile] = {}
        gone = {row.id for row in missing}
        same_size = documents.same_size(self.connection, self.source_id, {file.size for file in new}) if new else {}
        for file in new:
            candidates = [
                row
                for row in same_size.get(file.size, ())
                if row.id not in renamed and (row.id in gone or (row.state == "deleted" and row.key not in files))
            ]
            with contextlib.suppress(AskfolderError):
                digest = self.source.hash(file.key) if candidates else b""
                if document := next((row for row in candidates if row.live_sha256 == digest), None):
                    renamed[document.id] = file
        return renamed

    def _apply_renamed(self, renamed: dict[int, FoundFile]) -> None:
        active = generations.active(self.connection) if renamed else []
        for document_id, file in renamed.items():
            with self.connection.transaction():
                documents.move(self.connection, document_id, file.key, file.revision)
                self.rename(self.connection, active, document_id)

    def _enqueue(self, files: list[FoundFile]) -> int:
        rows = [(file.key, file.revision, file.size) for file in sorted(files, key=lambda file: -file.modified)]
        documents.enqueue(self.connection, self.source_id, rows[:CROWD])
        for start in range(CROWD, len(rows), BATCH):
            self.meanwhile()
            documents.enqueue(self.connection, self.source_id, rows[start : start + BATCH], bulk=True)
        return len(rows)

    def _is_settled(self, file: FoundFile) -> bool:
        """Return True if a new or changed file seems complete; otherwise remember it in `unsettled`."""
        now = time.monotonic()
        revision, since = self.unsettled.get(file.key, ("", now))
        if revision != file.revision:
            since = now
        written = being_written(self.source.path(file.key))
        needed = {True: HELD_OPEN_SECONDS, False: SETTLE_SECONDS, None: UNSURE_SECONDS}[written]
        if now - since >= needed or (not written and time.time() - file.modified > SETTLED_AGE):
            self.unsettled.pop(file.key, None)
            return True
        self.unsettled[file.key] = (file.revision, since)
        return False

    def _is_altered(self, file: FoundFile | None, row: LedgerRow) -> bool:
        """Return True if the content changed although size and mtime did not, or if its metadata was never read."""
        with contextlib.suppress(AskfolderError):
            return (
                file is not None
                and file.revision == row.live_revision
                and row.live_sha256 is not None
                and (not row.metadata_read or self.source.hash(file.key) != row.live_sha256)
            )
        return False

    def _stop(self, problem: str) -> None:
        if not self.stopped:
            log.error(problem, action="scan.stopped")
        self.stopped = True
        sources.stopped(self.connection, self.source_id, problem)

    def _report(self, listing: Listing | None, identity: str, counts: dict[str, int]) -> None:
        """Log the changes; record the result of a full scan. `listing`: None after a scan of some keys."""
        if listing:
            self.stopped = False
            unwatched = self.unwatched(listing.folders)
            self.partly_watched = unwatched is not None
            closed = f"Some folders cannot be read and were left as they are: {', '.join(listing.closed[:5])}"
            problem = " ".join(filter(None, [unwatched, closed if listing.closed else None])) or None
            sources.scanned(self.connection, self.source_id, identity, problem, counts)
        if counts["changed"] or counts["renamed"] or counts["gone"]:
            message = "{changed} new or changed, {renamed} renamed, {gone} gone".format(**counts)
            log.info(message, action="scan.done", **counts)


def _missing(ledger: dict[str, LedgerRow], files: dict[str, FoundFile], closed: list[str]) -> list[LedgerRow]:
    """Return the documents without a file, those in unreadable folders left out."""
    unknown = set(closed)
    return [
        row
        for key, row in ledger.items()
        if key not in files and row.state != "deleted" and unknown.isdisjoint((key, *ancestors(key)))
    ]


def _changed(ledger: dict[str, LedgerRow], files: dict[str, FoundFile]) -> list[FoundFile]:
    return [
        file
        for key, file in files.items()
        if (row := ledger.get(key)) is None or row.state == "deleted" or row.wanted_revision != file.revision
    ]
