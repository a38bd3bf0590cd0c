"""The producer of one source: watch the folder, scan it into the ledger, publish due documents, sweep lost ones."""

import contextlib
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import psycopg

from shared import db
from shared.broker import check
from shared.db import Connection
from shared.errors import AskfolderError, TransientError
from shared.ledger import documents, generations, sources
from shared.log import log
from shared.providers.choice import embedder_of
from shared.settings import Settings, load
from worker.app import celery_app
from worker.indexing import contexts, index
from worker.indexing.chunking import CHUNKER_VERSION
from worker.indexing.inputs import chunk_sizes
from worker.indexing.lexemes import Counting
from worker.publishing import Publisher
from worker.source.folder import FolderSource
from worker.source.scan import Scanner
from worker.source.watch import Watch

TICK_SECONDS = 0.1
IDLE_SECONDS = 0.5  # wait for an event while there is no other work
REQUEST_SECONDS = 0.5  # between checks for a requested scan
SCAN_ALL_ABOVE = 200  # changed keys: one full scan costs less than more of them
STOPPED_SECONDS = 2.0  # between scans of a folder that may be back as it was
PARTLY_WATCHED_SECONDS = 30.0  # between scans of a folder that is not watched completely
SWEEP_SECONDS = 5.0
EMPTY_SECONDS = 3.0  # a published task that no worker took, with an empty queue, was lost
REUNION_SECONDS = 15.0  # workers may first renew their leases after a database outage


@dataclass
class Job:
    """An action and the seconds between its runs."""

    seconds: float
    action: Callable[[], object]
    due: float = 0.0

    def run_if_due(self) -> None:
        if (now := time.monotonic()) >= self.due:
            self.due = now + self.seconds
            self.action()


class Producer:
    """One source's loop. `tick()` does what is due now; `run()` repeats it."""

    def __init__(self, settings: Settings, connection: Connection, after_outage: bool = False) -> None:
        self.settings = settings
        self.connection = connection
        self.source = FolderSource(settings.inbox)
        self.watch = Watch(self.source, settings.watch)
        self.scanner = Scanner(settings, connection, self.source, self.watch.problem, index.rename)
        self.publisher = Publisher(settings, connection, self.scanner.source_id)
        self.scanner.meanwhile = self.publisher.publish
        self.counting = Counting(settings.database_url)
        self.changed: set[str] = set()
        self.request: tuple[bool, bool] | None = None
        self.last_full_scan = self.next_full_scan = 0.0
        self.idle = False
        self.jobs = (
            Job(0, self.collect_changes),
            Job(REQUEST_SECONDS, self.look_for_request),
            Job(0, self.scan),
            Job(SWEEP_SECONDS, self.sweep, time.monotonic() + (REUNION_SECONDS if after_outage else 0)),
            Job(0, self.publish),
        )

    def tick(self) -> None:
        for job in self.jobs:
            job.run_if_due()

    def collect_changes(self) -> None:
        self.changed |= self.scanner.again
        self.scanner.again.clear()
        self.changed |= self.watch.changed(IDLE_SECONDS if self.idle and not self.changed else 0)

    def look_for_request(self) -> None:
        self.request = sources.asked_scan(self.connection, self.scanner.source_id)

    def scan(self) -> None:
        """Run a full scan if one is due, otherwise scan the changed keys."""
        now = time.monotonic()
        if self.scanner.stopped:  # a single change is not applied, but may be the folder's return
            if self.changed:
                self.next_full_scan = min(self.next_full_scan, self.last_full_scan + STOPPED_SECONDS)
            self.changed.clear()
        keys, self.changed = self.changed, set()
        is_due = now >= self.next_full_scan or self.request is not None
        if is_due or self.watch.take_lost() or "" in keys or len(keys) > SCAN_ALL_ABOVE:
            request, self.request = self.request or (False, False), None
            self.last_full_scan, self.next_full_scan = now, now + self.settings.rescan_seconds
            self.scanner.scan(None, *request)
            if self.scanner.partly_watched:
                self.next_full_scan = min(self.next_full_scan, now + PARTLY_WATCHED_SECONDS)
        elif not self.scanner.stopped:
            below = {key for key in keys | set(self.scanner.unsettled) if not self.source.rules.ignores(key)}
            if below:
                self.scanner.scan(below)

    def sweep(self) -> None:
        seconds = EMPTY_SECONDS if self.publisher.queue_is_empty() else documents.REPUBLISH_SECONDS
        documents.sweep(self.connection, seconds)
        documents.purge(self.connection)
        self.counting.start(self.connection)
        if promoted := generations.promote_when_whole(self.connection):
            log.info(
                f"The index of {promoted.embedder} {promoted.model} answers from now on", action="generation.switched"
            )

    def publish(self) -> None:
        self.idle = self.publisher.publish() == 0 and not documents.in_flight(self.connection)

    def run(self) -> None:
        self.watch.start()
        try:
            while True:
                self.tick()
                time.sleep(TICK_SECONDS)
        finally:
            self.watch.stop()


def want_generation(settings: Settings, connection: Connection) -> None:
    """Record the wanted embedder, chunker and template in the database."""
    embedder = embedder_of(settings)
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


def wait_for_turn(settings: Settings, connection: Connection) -> None:
    """Return once this process is the only producer of the folder."""
    if not sources.serve(connection, "folder", str(settings.inbox)):
        log.info(f"Another producer serves {settings.inbox}; this one stands by", action="producer.stands_by")
        while not sources.serve(connection, "folder", str(settings.inbox)):
            time.sleep(1)


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    settings = load()
    celery_app(settings)
    after_outage, first = False, True
    while True:
        try:
            with contextlib.suppress(TransientError):  # deletions are applied without Redis too
                check(settings.redis_url)
            db.migrate(settings.database_url)
            with db.connect(settings.database_url) as connection:
                wait_for_turn(settings, connection)
                want_generation(settings, connection)
                if first:
                    documents.wake(connection)
                first = False
                log.info(f"Serving {settings.inbox}", action="producer.serves")
                Producer(settings, connection, after_outage).run()
        except (TransientError, psycopg.OperationalError) as error:
            after_outage = True
            log.error(f"The producer waits for the database: {error}", action="producer.waits")
            time.sleep(1)
        except AskfolderError as error:
            log.error(str(error), action="producer.stopped")
            sys.exit(1)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
