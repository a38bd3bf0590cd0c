"""The one task: a document by its id. What a worker process needs is opened after the fork."""

import atexit
import functools
import os
import sys
from typing import Any

from celery import signals

from shared import broker, db
from shared.errors import SettingsError, TransientError
from shared.ledger.generations import Generation
from shared.models import EmbeddingModel
from shared.providers.choice import embedder_of
from shared.providers.embedder import Embedder
from shared.providers.meter import Meter
from worker import leases
from worker.app import app, settings
from worker.indexing.contexts import ContextWriter
from worker.ingest import Pool, ingest
from worker.parsing.parser import Parser


@functools.cache
def _pool() -> Pool:
    return db.pool(settings.database_url, 4)


@functools.cache
def _name() -> str:
    """Asked for right after the fork, while the parent is surely the worker."""
    return leases.name_of(os.getpid(), os.getppid())


@functools.cache
def _parser() -> Parser:
    return Parser(
        memory_bytes=settings.parse_memory_mb << 20,
        seconds=settings.parse_seconds,
        max_text_chars=settings.max_text_mb * 1_000_000,
        max_file_bytes=settings.max_file_mb << 20,
    )


@functools.cache
def _meter() -> Meter:
    return Meter.of(settings, _pool())


@functools.cache
def _embedder(model: EmbeddingModel) -> Embedder:
    return embedder_of(settings, _meter(), model)


@functools.cache
def _writer() -> ContextWriter | None:
    return ContextWriter.of(settings, _meter())


def _embedder_of(generation: Generation) -> Embedder:
    return _embedder(generation.embedding_model)


@app.task(name="ingest", Request=leases.IngestRequest)
def ingest_document(document_id: int) -> str:
    if not leases.readable(settings.inbox):
        return "its source is away"  # the worker stops taking its documents, and the ledger sends this one again
    return ingest(_pool(), _parser(), _embedder_of, document_id, _name(), _writer())


@signals.celeryd_init.connect
def _check(**_: Any) -> None:
    """A Redis that may throw the queue away stops the worker; one that is away is waited for."""
    try:
        broker.check(settings.redis_url)
    except SettingsError as error:
        sys.exit(str(error))
    except TransientError:
        pass


@signals.worker_process_init.connect
def _open(**_: object) -> None:
    _name()
    _pool()


@signals.worker_process_shutdown.connect
def _close(**_: object) -> None:
    _parser().close()
    _pool().close(timeout=1)


@signals.worker_ready.connect
def _ready(**_: object) -> None:
    atexit.register(leases.left)  # Celery's own signal for the end is not sent when tasks had to be ended
