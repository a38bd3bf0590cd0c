"""The one task: a document by its id. What a worker process needs is opened after the fork."""

import functools

from celery import signals

from shared import db
from shared.embedding import Embedder
from shared.generations import Generation
from shared.providers import embedder_for
from worker.app import app, settings
from worker.ingest import Pool, ingest
from worker.parsing import Parser


@functools.cache
def _pool() -> Pool:
    return db.pool(settings.database_url, 4)


@functools.cache
def _parser() -> Parser:
    return Parser(
        memory_bytes=settings.parse_memory_mb << 20, seconds=settings.parse_seconds,
        max_text_chars=settings.max_text_mb * 1_000_000, max_file_bytes=settings.max_file_mb << 20,
    )  # fmt: skip


@functools.cache
def _embedder(embedder: str, model: str, model_path: str, dimensions: int) -> Embedder:
    return embedder_for(settings, embedder, model, model_path, dimensions)


def _embedder_of(generation: Generation) -> Embedder:
    return _embedder(generation.embedder, generation.model, generation.model_path, generation.dimensions)


@app.task(name="ingest")
def ingest_document(document_id: int) -> str:
    return ingest(_pool(), _parser(), _embedder_of, document_id)


@signals.worker_process_init.connect
def _open(**_: object) -> None:
    _pool()


@signals.worker_process_shutdown.connect
def _close(**_: object) -> None:
    _parser().close()
    _pool().close(timeout=1)
