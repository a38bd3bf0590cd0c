"""fetch → parse → chunk → (contexts) → embed → upsert: the stages of one document in a worker process."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import numpy as np
import psycopg
from billiard.exceptions import SoftTimeLimitExceeded
from psycopg_pool import ConnectionPool, PoolTimeout

from shared import db
from shared.db import Connection
from shared.errors import PermanentError, TransientError, UnreadableError
from shared.ledger import claims, documents, generations
from shared.ledger.claims import Claim, LostClaim
from shared.ledger.generations import Generation
from shared.log import log
from shared.models import Chunk, Parsed
from shared.providers.choice import embedder_of
from shared.providers.embedder import Embedder, embed_all
from shared.providers.meter import Meter
from shared.settings import Settings
from worker.indexing import contexts, index, lexemes
from worker.indexing.chunking import chunk
from worker.indexing.contexts import ContextWriter
from worker.indexing.inputs import hash_of, inputs
from worker.parsing.parser import Parser
from worker.source.folder import FolderSource

FIRST_WAIT, LONGEST_WAIT = 2.0, 600.0  # seconds before a retry
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Work:
    """The resources of a worker process. Open them after the fork: a connection pool does not survive one.

    `name`: the process's, written into its leases. `contexts`: None if the settings ask for no contexts.
    """

    name: str
    inbox: Path
    pool: ConnectionPool[Connection]
    parser: Parser
    contexts: ContextWriter | None
    embedder_of: Callable[[Generation], Embedder]

    @classmethod
    def open(cls, settings: Settings, name: str) -> "Work":
        pool = db.pool(settings.database_url, 4)
        meter = Meter.of(settings, pool)
        embedder = cache(partial(embedder_of, settings, meter))  # generations of the same model share one
        return cls(
            name,
            settings.inbox,
            pool,
            Parser.of(settings),
            ContextWriter.of(settings, meter),
            lambda generation: embedder(generation.embedding_model),
        )

    def call(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function with a connection from the pool."""
        with self.pool.connection() as connection:
            return function(connection, *args, **kwargs)

    def close(self) -> None:
        self.parser.close()
        self.pool.close(timeout=1)


@dataclass(frozen=True, slots=True)
class Text:
    """A document's text as it is stored."""

    version: int
    parsed: Parsed


@dataclass(frozen=True, slots=True)
class NewText:
    """The text of a fetched file, to be stored together with its chunks."""

    parsed: Parsed
    revision: str
    sha256: bytes


def ingest(work: Work, document_id: int) -> str:
    """Ingest one document. Return the outcome ("ready", "failed", "waits" …). Errors are recorded, not raised."""
    try:
        claim = work.call(claims.claim, document_id, work.name)
    except (psycopg.OperationalError, PoolTimeout) as error:
        log.warning(f"Database unavailable: {error}", action="ingest.no_database", document=document_id)
        return "no database"  # in the ledger the document is still published: the producer publishes it again later
    if claim is None:
        return "nothing to do"
    try:
        with _heartbeat(work, claim):
            return _ingest(work, claim)
    except LostClaim:
        return "superseded"
    except UnreadableError as error:
        return _end(work, claim, "failed", str(error), claims.failed)
    except (TransientError, PermanentError, psycopg.OperationalError, PoolTimeout) as error:
        # PermanentError: a wrong key or model is not the document's fault; it waits until the settings are corrected.
        seconds = max(getattr(error, "retry_after", None) or 0.0, min(FIRST_WAIT * 2**claim.retries, LONGEST_WAIT))
        reason = _database_reason(error) if isinstance(error, psycopg.Error) else str(error)
        return _end(work, claim, "waits", reason, partial(claims.postpone, seconds=seconds))
    except SoftTimeLimitExceeded:  # the vectors so far are committed: the next attempt goes on from there
        reason = f"{claim.key} reached the time limit of one attempt; the next attempt continues from there."
        return _end(work, claim, "waits", reason, partial(claims.postpone, seconds=1))
    except Exception:
        log.exception("A document could not be ingested", action="ingest.error", document=claim.id, source=claim.key)
        defect = f"an error in askfolder itself (document {claim.id}, see worker.log)"
        reason = f"{claim.key} caused {defect}; askfolder tries up to three times."
        return _end(work, claim, "stumbled", reason, claims.record_crash)


def _ingest(work: Work, claim: Claim) -> str:
    text = read(work, claim)
    active = work.call(generations.active)  # the live one first, because it answers
    for generation in active:
        chunks = situate(work, claim, generation, text.parsed, split(work, claim, generation, text.parsed))
        embedded = embed(work, claim, generation, text.parsed.title, chunks)
        text = upsert(work, claim, generation, text, embedded, last=generation is active[-1])
    return "ready"


def read(work: Work, claim: Claim) -> Text | NewText:
    """Fetch and parse the file; return the stored text if it was made from the same bytes."""
    stored = work.call(claims.text, claim.id)
    if claim.state == "ready" and stored:
        return Text(*stored)  # only another generation lacks the document
    with FolderSource(Path(claim.root)).fetch(claim.key) as file:
        if file.sha256 == claim.live_sha256 and claim.metadata_read and stored:
            work.call(claims.touch, claim, file.revision)
            return Text(*stored)
        parsed = work.parser.parse(file.path, claim.key.rpartition("/")[2])
    return NewText(parsed, file.revision, file.sha256)


def split(work: Work, claim: Claim, generation: Generation, parsed: Parsed) -> list[Chunk]:
    """Split the text into the generation's chunks."""
    embedder = work.embedder_of(generation)
    work.call(claims.progress, claim, "chunking")
    return chunk(parsed, embedder.count, *generation.chunk_sizes)


def situate(work: Work, claim: Claim, generation: Generation, parsed: Parsed, chunks: list[Chunk]) -> list[Chunk]:
    """Add contexts to the chunks, in a generation with contexts; commit them request by request.

    New contexts come only from the model in the settings: an older generation, which answers until its successor is
    complete, uses the stored contexts alone.
    """
    if not (model := contexts.model_of(generation)):
        return chunks
    known = work.call(contexts.cached, claim, model, parsed.text, chunks)
    missing = [c for c in chunks if c.content not in known]
    if work.contexts is not None and work.contexts.model == model and missing:
        work.call(claims.progress, claim, "contexts", len(chunks) - len(missing), len(chunks))
        for written in work.contexts.write(claim.key.rpartition("/")[2], parsed, missing):
            known |= written
            done = sum(c.content in known for c in chunks)
            with work.pool.connection() as connection:
                contexts.keep(connection, claim, model, parsed.text, written)
                claims.progress(connection, claim, "contexts", done, len(chunks), further=True)
    return [replace(c, context=known.get(c.content)) for c in chunks]


def embed(
    work: Work, claim: Claim, generation: Generation, title: str | None, chunks: list[Chunk]
) -> list[index.Input]:
    """Return the chunks, each with the hash of an input that has a vector. New vectors are committed batch by batch."""
    embedder = work.embedder_of(generation)
    texts = inputs(embedder, title, chunks)
    hashes = [hash_of(text) for text in texts]
    with work.pool.connection() as connection:
        cached = index.cached(connection, generation, claim.collection_id, hashes)
        indexed = index.known_inputs(connection, generation, claim.id)
    # A changed title or heading alone embeds nothing: a chunk with the same content keeps its vector.
    hashes = [h if h in cached else indexed.get(c.content, h) for c, h in zip(chunks, hashes, strict=True)]
    embedded = cached | set(indexed.values())
    missing = {h: text for h, text in zip(hashes, texts, strict=True) if h not in embedded}
    new, done = list(missing), len(chunks) - len(missing)

    def commit(batch: list[int], vectors: np.ndarray) -> None:
        nonlocal done
        done += len(batch)
        with work.pool.connection() as connection:
            index.cache(connection, generation, claim.collection_id, [new[i] for i in batch], vectors)
            claims.progress(connection, claim, "embedding", done, len(chunks), further=True)

    work.call(claims.progress, claim, "embedding", done, len(chunks))
    embed_all(embedder, list(missing.values()), commit)
    return list(zip(chunks, hashes, strict=True))


def upsert(
    work: Work, claim: Claim, generation: Generation, text: Text | NewText, inputs: list[index.Input], last: bool
) -> Text:
    """Store the document in a generation in one transaction, a new text with it. `last`: the document is ready then."""
    language = work.call(lexemes.configuration, claim.collection_id, text.parsed.text)
    work.call(claims.progress, claim, "storing")
    with work.pool.connection() as connection, connection.transaction():
        claims.lock(connection, claim)
        if isinstance(text, NewText):
            text = Text(claims.set_text(connection, claim, text.parsed, text.revision, text.sha256), text.parsed)
        index.replace(connection, generation, claim.id, inputs, text.version, language)
        if last:
            claims.ready(connection, claim)
    return text


@contextlib.contextmanager
def _heartbeat(work: Work, claim: Claim) -> Iterator[None]:
    """Extend the lease from a thread while the body runs, however long a stage takes."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(documents.HEARTBEAT_SECONDS):
            with contextlib.suppress(psycopg.Error, PoolTimeout):
                work.call(claims.heartbeat, claim)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _database_reason(error: psycopg.Error) -> str:
    if isinstance(error, psycopg.errors.DiskFull):
        return "The database's disk is full: free some space there; the document is retried automatically."
    return "The database was unavailable; the document is retried."


def _end(work: Work, claim: Claim, outcome: str, reason: str, record: Callable[[Connection, Claim, str], None]) -> str:
    """Record a failure and return the outcome. If the database stays away for a minute, the lease runs out instead."""
    log.warning(reason, action=f"ingest.{outcome}", document=claim.id, source=claim.key)
    for pause in (0.5, 1, 2, 4, 8, 16, 16, 16):
        try:
            work.call(record, claim, reason)
            return outcome
        except LostClaim:
            return "superseded"
        except (psycopg.OperationalError, PoolTimeout):
            time.sleep(pause)
    return outcome
