"""Watches the folder, compares it with the ledger, publishes what is due. The scan is the truth, events only make it faster."""

import contextlib
import signal
import sys
import time

import psycopg
import redis
from kombu.exceptions import OperationalError as BrokerError

from shared import db, documents, generations, sources
from shared.db import Connection
from shared.documents import Known
from shared.errors import AskfolderError, PermanentError, TransientError
from shared.log import log
from shared.providers import wanted_embedder
from shared.queue import check
from shared.settings import Settings, load
from worker import index
from worker.app import app, queue_of
from worker.chunking import CHUNKER_VERSION
from worker.ingest import chunk_sizes
from worker.sources import FolderSource, Found
from worker.tasks import ingest_document
from worker.watching import Watch

TICK_SECONDS = 0.1
SETTLE_SECONDS = 0.4  # a file is taken when size and mtime have stood still for so long …
UNSURE_SECONDS = 1.5  # … or for so long, where it cannot be told whether somebody has it open for writing
SETTLED_AGE = 5.0  # … or at once, when it was last written so long ago
HELD_OPEN_SECONDS = 60.0  # a file that a program keeps open, and leaves as it is for so long, is taken all the same
SCAN_ALL_ABOVE = 200  # changed keys: beyond that one look at everything costs less than many
HELD_SECONDS = 2.0  # between scans that ask whether a folder is back as it was
BLIND_SECONDS = 30.0  # between scans, where not everything can be watched
SWEEP_SECONDS = 5.0
NO_REDIS_SECONDS = 2.0
EMPTY_SECONDS = 3.0  # a task that nobody took for so long, and that is not in the queue any more, was lost with it
REUNION_SECONDS = 15.0  # after the database was away, workers may first say that they still hold what they held
CROWD = 50  # the newest of many new files; the others let them, and what comes later, pass by
GUARDED_FILES = 20  # so many removals at once are looked at twice, and their share is judged
SECOND_LOOK_SECONDS = 1.0
WAITING_FILES, WAITING_BYTES = 24, 16_000  # the window: what may wait in the queue, besides what is being worked on
LARGE_BYTES = 16_000  # so large (seconds of embedding) that a small document shouldn't have to wait for it
TINY_BYTES = 4_000  # … and so small that it may pass by what waits


class Held(Exception):
    """A scan that must not be carried out until somebody confirms it; the message says why."""


class Producer:
    """One source's watcher. `tick()` does what is due now; `run()` repeats it."""

    def __init__(self, settings: Settings, connection: Connection, after_outage: bool = False) -> None:
        self.settings = settings
        self.connection = connection
        self.source = FolderSource(settings.inbox)
        self.source_id = sources.source(connection, "folder", str(settings.inbox))
        self.queue = queue_of("folder", str(settings.inbox))
        self.watch = Watch(self.source, settings.watch)
        self.dirty: set[str] = set()
        self.unsettled: dict[str, tuple[str, float]] = {}  # key → (revision, since when it has it)
        self.removals: tuple[int, float] = (0, 0.0)  # how many, since when
        self.held = False  # the last full scan stopped: single events must not do what it would not
        self.next_scan = self.next_question = self.next_publish = self.last_scan = 0.0
        self.next_sweep = time.monotonic() + (REUNION_SECONDS if after_outage else 0)
        self.idle = False

    # --- comparing ---

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
            row for key, row in ledger.items()
            if key not in found and row.state != "deleted" and not any(key == c or key.startswith(f"{c}/") for c in listing.closed)
        ]  # fmt: skip
        changed = [
            file
            for key, file in found.items()
            if (row := ledger.get(key)) is None or row.state == "deleted" or row.wanted_revision != file.revision
        ]
        renamed = self._renamed([file for file in changed if file.key not in ledger], missing, found)
        gone = [row for row in missing if row.id not in renamed]
        if not confirmed:
            if self._looks_again(gone):
                self.dirty |= below or {""}
                return
            try:
                self._guard(gone, len(found), identity, below is None)
            except Held as held:
                self._stop(str(held))
                return
        for document_id, file in renamed.items():
            with self.connection.transaction():
                documents.move(self.connection, document_id, file.key, file.revision)
                index.rename(self.connection, generations.active(self.connection), document_id)
        taken = {file.key for file in renamed.values()}
        new = sorted((f for f in changed if f.key not in taken and self._settled(f)), key=lambda f: -f.modified)
        rows = [(file.key, file.revision, file.size) for file in new]
        documents.want(self.connection, self.source_id, rows[:CROWD])
        documents.want(self.connection, self.source_id, rows[CROWD:], bulk=True)
        documents.gone(self.connection, [row.id for row in gone])
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

    def _settled(self, file: Found) -> bool:
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

    def _altered(self, file: Found | None, row: Known) -> bool:
        """Whether a file that looks as it did (size and time) holds other bytes."""
        with contextlib.suppress(AskfolderError):
            return (
                file is not None
                and file.revision == row.live_revision
                and row.live_sha256 is not None
                and self.source.hash(file.key) != row.live_sha256
            )
        return False

    def _renamed(self, new: list[Found], missing: list[Known], found: dict[str, Found]) -> dict[int, Found]:
        """Document id → the new file that has the bytes of a document that is gone."""
        renamed: dict[int, Found] = {}
        gone = {row.id for row in missing}
        twins = documents.twins(self.connection, self.source_id, {file.size for file in new}) if new else {}
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

    def _guard(self, gone: list[Known], files: int, identity: str, whole: bool) -> None:
        """Raises Held when so much would be removed that something else than a person's tidying may be behind it."""
        lost = [row for row in gone if not self.source.ignores(row.key)]  # an ignore rule is a person's will
        if not lost:
            return
        total = documents.total(self.connection, self.source_id)
        go_on = "Nothing was changed. If that is right, run: askfolder reconcile --confirm"
        known = sources.identity(self.connection, self.source_id)
        if whole and len(lost) == total and known not in (None, identity):
            raise Held(
                f"The folder {self.source.root} is another one than before (unmounted, or replaced), and none of its {total} documents "
                f"is in it. {go_on}"
            )
        if len(lost) >= GUARDED_FILES and len(lost) * 100 > total * self.settings.guard_percent:
            raise Held(
                f"{len(lost)} of the {total} documents of {self.source.root} are gone, more than {self.settings.guard_percent} % "
                f"(ASKFOLDER_GUARD_PERCENT); {files} files are there. {go_on}"
            )

    def _looks_again(self, gone: list[Known]) -> bool:
        """Many removals at once are carried out only when they stand still: they may be the beginning of more."""
        now, (count, since) = time.monotonic(), self.removals
        if len(gone) < GUARDED_FILES:
            self.removals = (0, now)
            return False
        if count != len(gone):
            self.removals = (len(gone), now)
            return True
        return now - since < SECOND_LOOK_SECONDS

    def _stop(self, problem: str) -> None:
        if not self.held:
            log.error(problem, action="scan.stopped")
        self.held = True
        sources.stopped(self.connection, self.source_id, problem)

    def _scanned(self, identity: str, closed: list[str], folders: int, counts: dict[str, int]) -> None:
        self.held = False
        problems = [self.watch.problem(folders)]
        if closed:
            problems.append(f"Some folders cannot be read and were left as they are: {', '.join(closed[:5])}")
        if problems[0]:
            self.next_scan = min(self.next_scan, time.monotonic() + BLIND_SECONDS)
        problem = " ".join(problem for problem in problems if problem) or None
        sources.scanned(self.connection, self.source_id, identity, problem, counts)

    # --- publishing ---

    def publish(self) -> int:
        """Sends what is due, up to the window: a small file never waits behind a backlog or for large ones. Returns how many."""
        flying = documents.in_flight(self.connection)
        at_once = sources.capacity(self.connection, str(self.settings.inbox)) or self.settings.workers()
        large = sum(1 for size, _ in flying if size > LARGE_BYTES)
        waiting = [size for size, taken in flying if not taken]
        files, room = WAITING_FILES - len(waiting), WAITING_BYTES - sum(waiting)
        chosen = []
        for document in documents.due(self.connection, [self.source_id], WAITING_FILES + at_once):
            if document.size > LARGE_BYTES:
                if large >= max(at_once - 1, 1):
                    continue
                large += 1
            elif files <= 0 or room <= 0:
                continue
            else:
                files, room = files - 1, room - document.size
            chosen.append(document)
        documents.published(self.connection, [document.id for document in chosen])
        for sent, document in enumerate(chosen):
            try:
                ingest_document.apply_async(
                    args=[document.id],
                    argsrepr=f"({document.key!r})",
                    queue=self.queue,
                    priority=0 if document.size <= TINY_BYTES else 3,  # Redis serves 0 first
                    retry=True,
                    retry_policy={"max_retries": 1, "interval_start": 0.1},
                )
            except (
                BrokerError,
                redis.RedisError,
                OSError,
            ) as error:  # scans go on meanwhile: what is deleted leaves answers
                documents.unpublished(self.connection, [document.id for document in chosen[sent:]])
                log.error(f"Redis does not take work, it is tried again: {error}", action="producer.no_redis")
                self.next_publish = time.monotonic() + NO_REDIS_SECONDS
                return sent
        return len(chosen)

    def _queue_is_empty(self) -> bool:
        """Whether Redis has no task that waits, as after a restart or a flush; False when it does not say."""
        with contextlib.suppress(BrokerError, redis.RedisError, OSError), app.connection_for_write() as connection:
            channel = connection.default_channel
            try:
                return bool(channel.queue_declare(self.queue, passive=True).message_count == 0)
            except connection.channel_errors:  # a queue that holds nothing is none
                return True
        return False

    # --- the loop ---

    def tick(self) -> None:
        self.dirty |= self.watch.changed(TICK_SECONDS * (5 if self.idle and not self.dirty else 0))
        now = time.monotonic()
        asked = None
        if now >= self.next_question:
            self.next_question = now + 0.5
            asked = sources.asked_scan(self.connection, self.source_id)
        if self.held:  # single events don't count now, but they may be the folder's return
            if self.dirty:
                self.next_scan = min(self.next_scan, self.last_scan + HELD_SECONDS)
            self.dirty.clear()
        if (
            now >= self.next_scan
            or asked
            or self.watch.take_lost()
            or "" in self.dirty
            or len(self.dirty) > SCAN_ALL_ABOVE
        ):
            self.last_scan, self.next_scan = now, now + self.settings.rescan_seconds
            self.dirty.clear()
            self.scan(None, *(asked or ()))
        elif (self.dirty or self.unsettled) and not self.held:
            below = {key for key in self.dirty | set(self.unsettled) if not self.source.ignores(key)}
            self.dirty.clear()
            if below:
                self.scan(below)
        if now >= self.next_sweep:
            self.next_sweep = now + SWEEP_SECONDS
            documents.sweep(self.connection, EMPTY_SECONDS if self._queue_is_empty() else documents.REPUBLISH_SECONDS)
            documents.purge(self.connection)
            if promoted := generations.promote_when_whole(self.connection):
                log.info(f"Now answering with {promoted.embedder} {promoted.model}", action="generation.switched")
        sent = self.publish() if now >= self.next_publish else 0
        self.idle = sent == 0 and not documents.in_flight(self.connection)

    def run(self) -> None:
        self.watch.start()
        try:
            while True:
                self.tick()
                time.sleep(TICK_SECONDS)
        finally:
            self.watch.stop()


def want_generation(settings: Settings, connection: Connection) -> None:
    """Says in the database which embedder, chunker and template are wanted."""
    embedder = wanted_embedder(settings)
    sizes = "/".join(map(str, chunk_sizes(embedder)))
    state = generations.want(
        connection, embedder.name, embedder.model, settings.embedding_model if embedder.name == "local" else "",
        embedder.dimensions, f"{CHUNKER_VERSION}/{sizes}", index.TEMPLATE,
    )  # fmt: skip
    embedder.close()
    log.info(f"Embedder {embedder.name} {embedder.model}: its index is {state}", action="generation.wanted")


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    settings = load()
    standing_by = outage = False
    while True:
        try:
            with contextlib.suppress(TransientError):  # without Redis there is still what was deleted
                check(settings.redis_url)
            db.migrate(settings.database_url)
            with db.connect(settings.database_url) as connection:
                while not sources.serve(connection, "folder", str(settings.inbox)):
                    if not standing_by:
                        log.info(
                            f"Another producer serves {settings.inbox}; this one stands by", action="producer.stands_by"
                        )
                    standing_by = True
                    time.sleep(1)
                standing_by = False
                want_generation(settings, connection)
                log.info(f"Serving {settings.inbox}", action="producer.serves")
                Producer(settings, connection, after_outage=outage).run()
        except (TransientError, psycopg.OperationalError) as error:
            outage = True
            log.error(f"The producer waits for the database: {error}", action="producer.waits")
            time.sleep(1)
        except AskfolderError as error:
            log.error(str(error), action="producer.stopped")
            sys.exit(1)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
