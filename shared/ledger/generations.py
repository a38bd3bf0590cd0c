"""Generations: an embedder, model, dimensions, chunker and template decide every vector. The live generation answers.

Another one is built beside it, document by document, and goes live when it holds all that the live one holds.
"""

from dataclasses import dataclass

from psycopg import sql

from shared import db
from shared.db import Connection
from shared.models import EmbeddingModel

LOCK = 0x61736B67


@dataclass(frozen=True, slots=True)
class Generation:
    """An index. `id` names its tables vector_<id> and lexical_<id>."""

    id: int
    embedder: str
    model: str
    model_path: str
    dimensions: int
    chunker: str
    template: str
    state: str

    @property
    def embedding_model(self) -> EmbeddingModel:
        return EmbeddingModel(self.embedder, self.model, self.model_path, self.dimensions)

    @property
    def chunk_sizes(self) -> tuple[int, int]:
        """Return the tokens of a chunk's content and of its overlap."""
        _, size, overlap = self.chunker.split("/")
        return int(size), int(overlap)

    @property
    def vectors(self) -> sql.Identifier:
        return sql.Identifier(f"vector_{self.id}")

    @property
    def lexical(self) -> sql.Identifier:
        return sql.Identifier(f"lexical_{self.id}")


def stored(connection: Connection) -> list[Generation]:
    """Return all generations, with the retired ones, which can be wanted again."""
    query = "SELECT id, embedder, model, model_path, dimensions, chunker, template, state FROM generation ORDER BY id"
    return db.rows(connection, Generation, query)


def active(connection: Connection) -> list[Generation]:
    """Return the live generation, then the building one; either may be missing."""
    both = [generation for generation in stored(connection) if generation.state != "retired"]
    return sorted(both, key=lambda generation: generation.state == "building")


def live(connection: Connection) -> Generation | None:
    return _in_state(connection, "live")


def _in_state(connection: Connection, state: str) -> Generation | None:
    return next((generation for generation in stored(connection) if generation.state == state), None)


def want(
    connection: Connection, embedder: str, model: str, model_path: str, dimensions: int, chunker: str, template: str
) -> str:
    """Make a generation the wanted one. Return its state: "live", or "building" while another one answers."""
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
        ((number, state),) = connection.execute(
            """
            INSERT INTO generation (embedder, model, model_path, dimensions, chunker, template, state)
            VALUES (%s, %s, %s, %s, %s, %s, 'retired') ON CONFLICT (embedder, model, dimensions, chunker, template)
            DO UPDATE SET model_path = excluded.model_path RETURNING id, state
            """,
            [embedder, model, model_path, dimensions, chunker, template],
        )
        _create_tables(connection, number, dimensions)
        connection.execute("UPDATE generation SET state = 'retired' WHERE state = 'building' AND id <> %s", [number])
        if state == "retired":
            state = "building" if live(connection) else "live"
            connection.execute("UPDATE generation SET state = %s, live_at = now() WHERE id = %s", [state, number])
        return str(state)


def _create_tables(connection: Connection, number: int, dimensions: int) -> None:
    """Create the tables of a generation, one row per chunk. HNSW indexes halfvec up to 4,000 dimensions."""
    if db.value(connection, "SELECT to_regclass(%s) IS NOT NULL", [f"askfolder.vector_{number}"]):
        return
    names = {"vectors": sql.Identifier(f"vector_{number}"), "lexical": sql.Identifier(f"lexical_{number}")}
    connection.execute(
        sql.SQL(
            """
            CREATE TABLE {vectors} (
                chunk_id      bigint PRIMARY KEY REFERENCES chunk ON DELETE CASCADE,
                document_id   bigint NOT NULL,
                collection_id bigint NOT NULL,
                embedding     halfvec({dimensions}) NOT NULL
            );
            CREATE INDEX ON {vectors} USING hnsw (embedding halfvec_cosine_ops) WITH (m = 16, ef_construction = 128);
            CREATE TABLE {lexical} (
                chunk_id      bigint PRIMARY KEY REFERENCES chunk ON DELETE CASCADE,
                document_id   bigint NOT NULL,
                collection_id bigint NOT NULL,
                bm25          sparsevec NOT NULL
            );
            CREATE INDEX ON {lexical} USING gin (bm25_terms(bm25)) WITH (fastupdate = off);
            """
        ).format(dimensions=sql.Literal(dimensions), **names)
    )


def promote_when_whole(connection: Connection) -> Generation | None:
    """Make the building generation live when it holds every live text. Return it when it was switched."""
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
        wanted = _in_state(connection, "building")
        if wanted is None or missing(connection, wanted.id) > 0:
            return None
        connection.execute("UPDATE generation SET state = 'retired' WHERE state = 'live'")
        connection.execute("UPDATE generation SET state = 'live', live_at = now() WHERE id = %s", [wanted.id])
        connection.execute(
            "UPDATE document d SET chunks = "
            "(SELECT count(*) FROM chunk c WHERE c.document_id = d.id AND c.generation_id = %s)",
            [wanted.id],
        )
        return wanted


def answering(connection: Connection) -> dict[str, object] | None:
    """Return the embedder, model and dimensions of the live generation."""
    if (generation := live(connection)) is None:
        return None
    return {"embedder": generation.embedder, "model": generation.model, "dimensions": generation.dimensions}


def building(connection: Connection) -> dict[str, object] | None:
    """Return the embedder and model of the building generation, and the number of documents that it lacks."""
    if (generation := _in_state(connection, "building")) is None:
        return None
    lacking = missing(connection, generation.id)
    return {"embedder": generation.embedder, "model": generation.model, "missing": lacking}


def missing(connection: Connection, generation_id: int) -> int:
    """Count the live documents that a generation does not hold yet."""
    query = """
        SELECT count(*) FROM document d
        WHERE d.live_revision IS NOT NULL AND d.state <> 'deleted' AND NOT EXISTS (
            SELECT 1 FROM document_generation g
            WHERE g.document_id = d.id AND g.generation_id = %s AND g.text_version = d.text_version)
    """
    return int(db.value(connection, query, [generation_id]))
