"""Publish documents to the queue: a window of tasks, so that a small document never waits behind a backlog."""

import contextlib
import time

import redis
from celery import current_app
from kombu.exceptions import OperationalError as BrokerError

from shared.db import Connection
from shared.ledger import documents, sources
from shared.ledger.documents import Due
from shared.log import log
from shared.settings import Settings
from worker.app import queue_of
from worker.tasks import ingest_document

NO_REDIS_SECONDS = 2.0  # between attempts
WAITING_FILES, WAITING_BYTES = 24, 16_000  # the window: what may wait in the queue, besides documents in progress
TINY_BYTES = 4_000  # documents that may overtake waiting ones

_UNAVAILABLE = (BrokerError, redis.RedisError, OSError)


class Publisher:
    """Sends the due documents of one source to its queue."""

    def __init__(self, settings: Settings, connection: Connection, source_id: int) -> None:
        self.settings = settings
        self.connection = connection
        self.source_id = source_id
        self.queue = queue_of("folder", str(settings.inbox))
        self._retry_at = 0.0

    def publish(self) -> int:
        """Send the due documents that fit into the window. Return their number."""
        if time.monotonic() < self._retry_at:
            return 0
        chosen = self._choose()
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
            except _UNAVAILABLE as error:
                # Not raised: scans must go on, so that deleted documents leave the answers.
                documents.unpublished(self.connection, [document.id for document in chosen[sent:]])
                log.error(f"Cannot publish to Redis, retrying: {error}", action="producer.no_redis")
                self._retry_at = time.monotonic() + NO_REDIS_SECONDS
                return sent
        return len(chosen)

    def _choose(self) -> list[Due]:
        """Select due documents: small ones up to the window, large ones for all processes but one."""
        in_flight = documents.in_flight(self.connection)
        processes = sources.capacity(self.connection, str(self.settings.inbox)) or self.settings.workers()
        large = max(processes - 1, 1) - sum(is_large for _, is_large, _ in in_flight)
        waiting = [size for size, _, is_taken in in_flight if not is_taken]
        files, room = WAITING_FILES - len(waiting), WAITING_BYTES - sum(waiting)
        chosen = []
        for document in documents.due(self.connection, [self.source_id], files) if files > 0 else ():
            if room > 0:
                room -= document.size
                chosen.append(document)
        if large > 0:
            chosen += documents.due(self.connection, [self.source_id], large, large=True)
        return chosen

    def queue_is_empty(self) -> bool:
        """Return True if the queue has no waiting task, as after a flush; False if Redis cannot be asked."""
        with contextlib.suppress(*_UNAVAILABLE), current_app.connection_for_write() as connection:
            channel = connection.default_channel
            try:
                return bool(channel.queue_declare(self.queue, passive=True).message_count == 0)
            except connection.channel_errors:  # Redis keeps no key for an empty queue
                return True
        return False
