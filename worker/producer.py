"""Watches the folder, compares it with the ledger, publishes what is due. The scan is the truth, events only make it faster."""

import contextlib
import queue
import signal
import sys
import time
from pathlib import Path

import psycopg
from kombu.exceptions import OperationalError as BrokerError
from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver
from watchdog.observers.polling import PollingObserver

from shared import db, documents, generations
from shared.db import Connection
from shared.errors import AskfolderError, PermanentError, TransientError
from shared.log import log
from shared.providers import wanted_embedder
from shared.queue import check
from shared.settings import Settings, load
from worker import index
from worker.app import queue_of
from worker.chunking import CHUNKER_VERSION
from worker.ingest import chunk_sizes
from worker.sources import FolderSource, Found
from worker.tasks import ingest_document

SETTLE_SECONDS = 0.4  # a file is taken when size and mtime have stood still for so long
SETTLED_AGE = 5.0  # … or at once, when it was last written so long ago
TICK_SECONDS = 0.1
SCAN_ALL_ABOVE = 200  # changed keys: beyond that one look at everything costs less than many
SWEEP_SECONDS = 5.0
WAITING_FILES, WAITING_BYTES = 24, 16_000  # the window: what may wait in the queue, besides what is being worked on
LARGE_BYTES = 16_000  # so large (seconds of embedding) that a small document shouldn't have to wait for it
TINY_BYTES = 4_000  # … and so small that it may pass by what waits


class Producer:
    """One source's watcher. `tick()` does what is due now; `run()` repeats it."""

    def __init__(self, settings: Settings, connection: Connection) -> None:
        self.settings = settings
        self.connection = connection
        self.source = FolderSource(settings.inbox)
        self.source_id = documents.source(connection, "folder", str(settings.inbox))
        self.queue = queue_of("folder", str(settings.inbox))
        self.events: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.dirty: set[str] = set()
        self.unsettled: dict[str, tuple[str, float]] = {}  # key → (revision, since when it has it)
        self.next_scan = self.next_sweep = 0.0
        self.idle = False

    # --- watching ---

    def watch(self) -> BaseObserver | None:
        """Starts the watcher; without one (no watches left, no such folder) the timer's scans find everything, later."""
        observer: BaseObserver = PollingObserver(timeout=1) if self.settings.watch == "poll" else Observer()
        try:
            observer.schedule(_Events(self), str(self.source.root), recursive=True)
            observer.start()
        except OSError as error:
            log.warning(
                f"The folder {self.source.root} cannot be watched ({error.strerror or error}); it is scanned every "
                f"{self.settings.rescan_seconds:.0f} s instead.", action="watch.failed",
            )  # fmt: skip
            return None
        return observer

    # --- comparing ---

    def scan(self, below: set[str] | None = None) -> None:
        """Compares the source, or what lies at and below some keys, with the ledger: new, changed, renamed, gone."""
        try:
            found, closed = self.source.discover(below)
        except PermanentError as error:
            if below is None:
                log.error(str(error), action="scan.failed")
                documents.scanned(self.connection, self.source_id, str(error))
            return
        ledger = documents.known(self.connection, self.source_id, below)
        seen = {file.key for file in found}
        missing = [
            row for key, row in ledger.items()
            if key not in seen and row.state != "deleted" and not any(key == c or key.startswith(f"{c}/") for c in closed)
        ]  # fmt: skip
        moved = {row.live_revision for row in missing}  # a renamed file keeps its times: there is nothing to wait for
        settled = [file for file in found if file.revision in moved or self._settled(file, ledger)]
        changed = [
            f
            for f in settled
            if f.key not in ledger or ledger[f.key].state == "deleted" or ledger[f.key].wanted_revision != f.revision
        ]
        renamed = self._renamed([f for f in changed if f.key not in ledger], {row.id for row in missing}, seen)
        documents.want(
            self.connection,
            self.source_id,
            [(f.key, f.revision, f.size) for f in changed if f.key not in renamed.values()],
        )
        documents.gone(self.connection, [row.id for row in missing if row.id not in renamed])
        if below is None:
            problem = (
                f"Some folders cannot be read and were left as they are: {', '.join(closed[:5])}" if closed else None
            )
            documents.scanned(self.connection, self.source_id, problem)
        if changed or missing:
            gone = sum(row.id not in renamed for row in missing)
            log.info(
                f"{len(changed) - len(renamed)} new or changed, {len(renamed)} renamed, {gone} gone", action="scan.done"
            )

    def _settled(self, file: Found, ledger: dict[str, documents.Known]) -> bool:
        row = ledger.get(file.key)
        if row and row.wanted_revision == file.revision and row.state != "deleted":
            self.unsettled.pop(file.key, None)
            return True
        now = time.monotonic()
        was, since = self.unsettled.get(file.key, ("", now))
        if was != file.revision:
            since = now
        if now - since >= SETTLE_SECONDS or time.time() - file.modified > SETTLED_AGE:
            self.unsettled.pop(file.key, None)
            return True
        self.unsettled[file.key] = (file.revision, since)
        return False

    def _renamed(self, new: list[Found], missing: set[int], seen: set[str]) -> dict[int, str]:
        """Document id → its new key, for new files that have the revision and the bytes of a document that is gone."""
        renamed: dict[int, str] = {}
        twins = documents.twins(self.connection, self.source_id, {file.revision for file in new}) if new else {}
        for file in new:
            for twin in twins.get(file.revision, ()):
                if twin.id in renamed or not (twin.id in missing or (twin.state == "deleted" and twin.key not in seen)):
                    continue
                with contextlib.suppress(AskfolderError):
                    with self.source.fetch(file.key) as fetched:
                        same = fetched.sha256 == twin.live_sha256
                    if same:
                        with self.connection.transaction():
                            documents.move(self.connection, twin.id, file.key)
                            index.rename(self.connection, generations.active(self.connection), twin.id)
                        renamed[twin.id] = file.key
                        break
        return renamed

    # --- publishing ---

    def publish(self) -> int:
        """Sends what is due, up to the window: a small file never waits behind a backlog or for large ones. Returns how many."""
        flying = documents.in_flight(self.connection)
        large = sum(1 for size, _ in flying if size > LARGE_BYTES)
        waiting = [size for size, taken in flying if not taken]
        files, room = WAITING_FILES - len(waiting), WAITING_BYTES - sum(waiting)
        chosen = []
        for document in documents.due(self.connection, [self.source_id], WAITING_FILES + self.settings.workers()):
            if document.size > LARGE_BYTES:
                if large >= max(self.settings.workers() - 1, 1):
                    continue
                large += 1
            elif files <= 0 or room <= 0:
                continue
            else:
                files, room = files - 1, room - document.size
            chosen.append(document)
        documents.published(self.connection, [document.id for document in chosen])
        for document in chosen:
            ingest_document.apply_async(
                args=[document.id],
                argsrepr=f"({document.key!r})",
                queue=self.queue,
                priority=0 if document.size <= TINY_BYTES else 3,  # Redis serves 0 first
                retry=True,
                retry_policy={"max_retries": 2, "interval_start": 0.1, "interval_step": 0.2},
            )
        return len(chosen)

    # --- the loop ---

    def tick(self) -> None:
        now = time.monotonic()
        with contextlib.suppress(queue.Empty):
            while True:
                self.dirty.add(self.events.get(timeout=0 if self.dirty or not self.idle else TICK_SECONDS * 5))
        if now >= self.next_scan:
            self.next_scan = now + self.settings.rescan_seconds
            self.dirty.clear()
            self.scan()
        elif self.dirty or self.unsettled:
            below = {key for key in self.dirty | set(self.unsettled) if not self.source.ignores(key)}
            self.dirty.clear()
            self.unsettled = {key: value for key, value in self.unsettled.items() if key in below}
            if below:
                self.scan(below if len(below) <= SCAN_ALL_ABOVE else None)
        if now >= self.next_sweep:
            self.next_sweep = now + SWEEP_SECONDS
            documents.sweep(self.connection)
            documents.purge(self.connection)
            if promoted := generations.promote_when_whole(self.connection):
                log.info(f"Now answering with {promoted.embedder} {promoted.model}", action="generation.switched")
        self.idle = self.publish() == 0 and not documents.in_flight(self.connection)

    def run(self) -> None:
        observer = self.watch()
        try:
            while True:
                self.tick()
                time.sleep(TICK_SECONDS)
                if observer and not observer.is_alive():
                    observer = self.watch()
                    self.next_scan = 0
        finally:
            if observer:
                observer.stop()


class _Events(FileSystemEventHandler):
    def __init__(self, producer: Producer) -> None:
        self.producer = producer

    def on_any_event(self, event: FileSystemEvent) -> None:
        if event.event_type in ("opened", "closed_no_write") or (event.is_directory and event.event_type == "modified"):
            return
        for path in {event.src_path, getattr(event, "dest_path", "") or event.src_path}:
            with contextlib.suppress(ValueError):
                key = self.producer.source.key(Path(path if isinstance(path, str) else path.decode()))
                if not key.startswith(".."):
                    self.producer.events.put(key)


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
    while True:
        try:
            check(settings.redis_url)
            db.migrate(settings.database_url)
            with db.connect(settings.database_url) as connection:
                while not documents.serve(connection, "folder", str(settings.inbox)):
                    time.sleep(1)  # another producer of this source is at work: stand by
                want_generation(settings, connection)
                Producer(settings, connection).run()
        except (TransientError, psycopg.OperationalError, BrokerError) as error:
            log.error(f"The producer waits for its servers: {error}", action="producer.waits")
            time.sleep(1)
        except AskfolderError as error:
            log.error(str(error), action="producer.stopped")
            sys.exit(1)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
