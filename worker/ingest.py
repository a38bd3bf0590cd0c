"""fetch → parse → chunk → (contexts) → embed → upsert: what a worker does with one document."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import psycopg
from billiard.exceptions import SoftTimeLimitExceeded
from psycopg_pool import ConnectionPool, PoolTimeout

from shared.db import Connection
from shared.errors import PermanentError, TransientError, UnreadableError
from shared.ledger import claims, documents, generations
from shared.ledger.claims import Claim, LostClaim
from shared.ledger.generations import Generation
from shared.log import log
from shared.models import Chunk, Parsed
from shared.providers.embedder import Embedder, embed_all
from worker.indexing import contexts, index, lexemes
from worker.indexing.chunking import chunk
from worker.indexing.contexts import ContextWriter
from worker.indexing.inputs import hash_of, inputs
from worker.parsing.parser import Parser
from worker.source.folder import FolderSource

FIRST_WAIT, LONGEST_WAIT = 2.0, 600.0  # seconds before a passing failure is tried again

Pool = ConnectionPool[Connection]


def ingest(
    pool: Pool,
    parser: Parser,
    embedder_of: Callable[[Generation], Embedder],
    document_id: int,
    worker: str = "",
    writer: ContextWriter | None = None,
) -> str:
    """Brings one document to what its source holds. Returns what came of it, in a word. Raises nothing that a retry could mend.

    `worker`: the name of this process, written beside the lease, so that its main process can tell whose leases died with it.
    `writer`: of contexts, where the settings ask for some.
    """
    try:
        with pool.connection() as connection:
            claim = claims.claim(connection, document_id, worker)
    except (psycopg.OperationalError, PoolTimeout) as error:
        log.warning(f"The database does not take work: {error}", action="ingest.no_database", document=document_id)
        return "no database"  # the ledger still has it as published, and sends it again later
    if claim is None:
        return "nothing to do"
    try:
        with _kept_alive(pool, claim):
            return _ingest(pool, parser, embedder_of, writer, claim)
    except LostClaim:
        return "superseded"
    except UnreadableError as error:
        reason = str(error)
        return _end(pool, claim, lambda connection: claims.failed(connection, claim, reason), "failed", reason)
    except (TransientError, PermanentError, psycopg.OperationalError, PoolTimeout) as error:
        # A wrong key or model (PermanentError) is not the document's fault either: it waits until somebody mends it.
        seconds = max(getattr(error, "retry_after", None) or 0.0, min(FIRST_WAIT * 2**claim.retries, LONGEST_WAIT))
        reason = _database_reason(error) if isinstance(error, psycopg.Error) else str(error)
        return _end(
            pool, claim, lambda connection: claims.postpone(connection, claim, reason, seconds), "waits", reason
        )
    except SoftTimeLimitExceeded:  # what was embedded is kept: the next turn goes on from there
        reason = f"{claim.key} took a worker's longest turn; it goes on from where it was."
        return _end(pool, claim, lambda connection: claims.postpone(connection, claim, reason, 1), "waits", reason)
    except Exception:
        log.exception("A document could not be ingested", action="ingest.error", document=claim.id, source=claim.key)
        reason = f"{claim.key} met an error in askfolder itself (document {claim.id}, see worker.log); it is tried up to three times."
        return _end(pool, claim, lambda connection: claims.record_crash(connection, claim, reason), "stumbled", reason)


def _ingest(
    pool: Pool,
    parser: Parser,
    embedder_of: Callable[[Generation], Embedder],
    writer: ContextWriter | None,
    claim: Claim,
) -> str:
    version, parsed, store_text = _text(pool, parser, claim)
    with pool.connection() as connection:
        active = generations.active(connection)
        language = lexemes.configuration(connection, claim.collection_id, parsed.text)
    for generation in active:  # the live one first: it answers
        embedded = _embedded(pool, embedder_of(generation), writer, generation, claim, parsed)
        with pool.connection() as connection:
            claims.progress(connection, claim, "storing")
        with pool.connection() as connection, connection.transaction():
            claims.lock(connection, claim)
            if store_text is not None:
                version = store_text(connection)
            index.replace(connection, generation, claim.id, embedded, version, language)
            store_text = None
            if generation is active[-1]:
                claims.ready(connection, claim)
    return "ready"


def _text(pool: Pool, parser: Parser, claim: Claim) -> tuple[int, Parsed, Callable[[Connection], int] | None]:
    """The document's text; with a function that stores it when it is a new one."""
    with pool.connection() as connection:
        stored = claims.text(connection, claim.id)
    if claim.state == "ready" and stored:
        return *stored, None  # only another generation lacks it
    with FolderSource(Path(claim.root)).fetch(claim.key) as file:
        if file.sha256 == claim.live_sha256 and claim.described and stored:
            with pool.connection() as connection:
                claims.touch(connection, claim, file.revision)
            return *stored, None
        parsed = parser.parse(file.path, claim.key.rpartition("/")[2])
    return (
        0,
        parsed,
        partial(claims.set_text, claim=claim, parsed=parsed, revision=file.revision, sha256=file.sha256),
    )


def _embedded(
    pool: Pool, embedder: Embedder, writer: ContextWriter | None, generation: Generation, claim: Claim, parsed: Parsed
) -> list[index.Input]:
    """The chunks, each with the hash of an input that has a vector; the vectors are committed batch by batch."""
    with pool.connection() as connection:
        claims.progress(connection, claim, "chunking")
    chunks = chunk(parsed, embedder.count, *generation.chunk_sizes)
    chunks = _situated(pool, writer, generation, claim, parsed, chunks)
    texts = inputs(embedder, parsed.title, chunks)
    hashes = [hash_of(text) for text in texts]
    with pool.connection() as connection:
        have = index.cached(connection, generation, claim.collection_id, hashes)
        before = index.known_inputs(connection, generation, claim.id)
    # A changed title or heading alone embeds nothing: a chunk whose content stands keeps the vector that it has.
    hashes = [h if h in have else before.get(c.content, h) for c, h in zip(chunks, hashes, strict=True)]
    kept = have | set(before.values())
    wanted = {h: text for h, text in zip(hashes, texts, strict=True) if h not in kept}
    new, total, done = list(wanted), len(chunks), len(chunks) - len(wanted)

    def commit(batch: list[int], vectors: np.ndarray) -> None:
        nonlocal done
        done += len(batch)
        with pool.connection() as connection:
            index.cache(connection, generation, claim.collection_id, [new[i] for i in batch], vectors)
            claims.progress(connection, claim, "embedding", done, total, further=True)

    with pool.connection() as connection:
        claims.progress(connection, claim, "embedding", done, total)
    embed_all(embedder, list(wanted.values()), commit)
    return list(zip(chunks, hashes, strict=True))


def _situated(
    pool: Pool, writer: ContextWriter | None, generation: Generation, claim: Claim, parsed: Parsed, chunks: list[Chunk]
) -> list[Chunk]:
    """The chunks with their contexts, in a generation that has some; they are committed request by request.

    Contexts are written only by the model that the settings name now: a generation that answers until another one is whole
    takes what there is, and asks nobody.
    """
    if not (model := contexts.model_of(generation)):
        return chunks
    with pool.connection() as connection:
        have = contexts.cached(connection, claim, model, parsed.text, chunks)
    wanted = [c for c in chunks if c.content not in have]
    if writer is not None and writer.model == model and wanted:
        total, done = len(chunks), len(chunks) - len(wanted)
        with pool.connection() as connection:
            claims.progress(connection, claim, "contexts", done, total)
        for written in writer.write(claim.key.rpartition("/")[2], parsed, wanted):
            have |= written
            done = sum(c.content in have for c in chunks)
            with pool.connection() as connection:
                contexts.keep(connection, claim, model, parsed.text, written)
                claims.progress(connection, claim, "contexts", done, total, further=True)
    return [replace(c, context=have.get(c.content)) for c in chunks]


@contextlib.contextmanager
def _kept_alive(pool: Pool, claim: Claim) -> Iterator[None]:
    """Extends the lease while the work goes on, however long a stage takes."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(documents.HEARTBEAT_SECONDS):
            with contextlib.suppress(psycopg.Error, PoolTimeout), pool.connection() as connection:
                claims.heartbeat(connection, claim)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _database_reason(error: psycopg.Error) -> str:
    if isinstance(error, psycopg.errors.DiskFull):
        return "The database's disk is full: make room there; it is tried again by itself."
    return "The database was away; it is tried again."


def _end(pool: Pool, claim: Claim, write: Callable[[Connection], None], word: str, reason: str) -> str:
    """Writes how it ended; waits for the database when it is away (the lease runs out if it stays so)."""
    log.warning(reason, action=f"ingest.{word}", document=claim.id, source=claim.key)
    for pause in (0.5, 1, 2, 4, 8, 16, 16, 16):
        try:
            with pool.connection() as connection:
                write(connection)
            return word
        except LostClaim:
            return "superseded"
        except (psycopg.OperationalError, PoolTimeout):
            threading.Event().wait(pause)
    return word
