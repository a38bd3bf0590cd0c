"""Watches the folder, compares it with the ledger, publishes what is due. The scan is the truth, events only make it faster."""

import contextlib
import signal
import sys
import time

import psycopg
import redis
from celery import current_app
from kombu.exceptions import OperationalError as BrokerError

from shared import db
from shared.broker import check
from shared.db import Connection
from shared.errors import AskfolderError, TransientError
from shared.ledger import documents, generations, sources
from shared.log import log
from shared.providers.choice import wanted_embedder
from shared.settings import Settings, load
from worker.app import celery_app, queue_of
from worker.indexing import contexts
from worker.indexing.chunking import CHUNKER_VERSION
from worker.indexing.inputs import chunk_sizes
from worker.indexing.lexemes import Counting
from worker.publishing import NO_REDIS_SECONDS, TINY_BYTES, WAITING_BYTES, WAITING_FILES
from worker.source.folder import FolderSource
from worker.source.scan import Scanner
from worker.source.watch import Watch
from worker.tasks import ingest_document

TICK_SECONDS = 0.1
SCAN_ALL_ABOVE = 200  # changed keys: beyond that one look at everything costs less than many
HELD_SECONDS = 2.0  # between scans that ask whether a folder is back as it was
BLIND_SECONDS = 30.0  # between scans, where not everything can be watched
SWEEP_SECONDS = 5.0
EMPTY_SECONDS = 3.0  # a task that nobody took for so long, and that is not in the queue any more, was lost with it
REUNION_SECONDS = 15.0  # after the database was away, workers may first say that they still hold what they held


class Producer:
    """One source's watcher. `tick()` does what is due now; `run()` repeats it."""

    def __init__(self, settings: Settings, connection: Connection, after_outage: bool = False) -> None:
        self.settings = settings
        self.connection = connection
        self.source = FolderSource(settings.inbox)
        self.queue = queue_of("folder", str(settings.inbox))
        self.watch = Watch(self.source, settings.watch)
        self.scanner = Scanner(settings, connection, self.source, self.watch.problem, meanwhile=self.publish)
        self.source_id = self.scanner.source_id
        self.dirty: set[str] = set()
        self.next_scan = self.next_question = self.next_publish = self.last_scan = 0.0
        self.next_sweep = time.monotonic() + (REUNION_SECONDS if after_outage else 0)
        self.counting = Counting(settings.database_url)
        self.idle = False

    # --- publishing ---

    def publish(self) -> int:
        """Sends what is due, up to the window: a small file never waits behind a backlog or for large ones. Returns how many."""
        if time.monotonic() < self.next_publish:
            return 0
        flying = documents.in_flight(self.connection)
        at_once = sources.capacity(self.connection, str(self.settings.inbox)) or self.settings.workers()
        large = max(at_once - 1, 1) - sum(is_large for _, is_large, _ in flying)
        waiting = [size for size, _, taken in flying if not taken]
        files, room = WAITING_FILES - len(waiting), WAITING_BYTES - sum(waiting)
        chosen = []
        for document in documents.due(self.connection, [self.source_id], files) if files > 0 else ():
            if room > 0:
                room -= document.size
                chosen.append(document)
        if large > 0:
            chosen += documents.due(self.connection, [self.source_id], large, large=True)
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
            except (BrokerError, redis.RedisError, OSError) as error:
                # Scans go on meanwhile: what is deleted leaves answers.
                documents.unpublished(self.connection, [document.id for document in chosen[sent:]])
                log.error(f"Redis does not take work, it is tried again: {error}", action="producer.no_redis")
                self.next_publish = time.monotonic() + NO_REDIS_SECONDS
                return sent
        return len(chosen)

    def _queue_is_empty(self) -> bool:
        """Whether Redis has no task that waits, as after a restart or a flush; False when it does not say."""
        with (
            contextlib.suppress(BrokerError, redis.RedisError, OSError),
            current_app.connection_for_write() as connection,
        ):
            channel = connection.default_channel
            try:
                return bool(channel.queue_declare(self.queue, passive=True).message_count == 0)
            except connection.channel_errors:  # a queue that holds nothing is none
                return True
        return False

    # --- the loop ---

    def tick(self) -> None:
        self.dirty |= self.scanner.again
        self.scanner.again.clear()
        self.dirty |= self.watch.changed(TICK_SECONDS * (5 if self.idle and not self.dirty else 0))
        now = time.monotonic()
        asked = None
        if now >= self.next_question:
            self.next_question = now + 0.5
            asked = sources.asked_scan(self.connection, self.source_id)
        if self.scanner.held:  # single events don't count now, but they may be the folder's return
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
            self.scanner.scan(None, *(asked or ()))
            if self.scanner.blind:
                self.next_scan = min(self.next_scan, now + BLIND_SECONDS)
        elif (self.dirty or self.scanner.unsettled) and not self.scanner.held:
            below = {key for key in self.dirty | set(self.scanner.unsettled) if not self.source.ignores(key)}
            self.dirty.clear()
            if below:
                self.scanner.scan(below)
        if now >= self.next_sweep:
            self.next_sweep = now + SWEEP_SECONDS
            documents.sweep(self.connection, EMPTY_SECONDS if self._queue_is_empty() else documents.REPUBLISH_SECONDS)
            documents.purge(self.connection)
            self.counting.start(self.connection)
            if promoted := generations.promote_when_whole(self.connection):
                log.info(f"Now answering with {promoted.embedder} {promoted.model}", action="generation.switched")
        self.idle = self.publish() == 0 and not documents.in_flight(self.connection)

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
    sizes = "/".join(map(str, chunk_sizes(embedder, settings.chunk_tokens, settings.context != "off")))
    state = generations.want(
        connection,
        embedder.name,
        embedder.model,
        settings.embedding_model if embedder.name == "local" else "",
        embedder.dimensions,
        f"{CHUNKER_VERSION}/{sizes}",
        contexts.template(settings),
    )
    embedder.close()
    contexts.forget_unasked(connection)
    log.info(f"Embedder {embedder.name} {embedder.model}: its index is {state}", action="generation.wanted")


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    settings = load()
    celery_app(settings)
    standing_by = outage = woken = False
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
                if not woken:
                    documents.wake(connection)
                woken = True
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
