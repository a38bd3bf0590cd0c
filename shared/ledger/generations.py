"""Generations: what decides what a vector is (embedder, model, dimensions, chunker, template). One is live and answers.

Another one is built beside it, document by document, and takes over in one switch when it holds all that the live one holds.
"""

from dataclasses import dataclass

from psycopg import sql
from psycopg.rows import class_row

from shared.db import Connection
from shared.models import EmbeddingModel

LOCK = 0x61736B67


@dataclass(frozen=True, slots=True)
class Generation:
    """`id` names its tables vector_<id> and lexical_<id>."""

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
        """Tokens of a chunk's content, and of its overlap."""
        _, size, overlap = self.chunker.split("/")
        return int(size), int(overlap)

    @property
    def vectors(self) -> sql.Identifier:
        return sql.Identifier(f"vector_{self.id}")

    @property
    def lexical(self) -> sql.Identifier:
        return sql.Identifier(f"lexical_{self.id}")


_COLUMNS = sql.SQL("id, embedder, model, model_path, dimensions, chunker, template, state")


def active(connection: Connection) -> list[Generation]:
    """The live generation first, then the one that is being built; either may be missing."""
    query = sql.SQL("SELECT {} FROM generation WHERE state IN ('live', 'building') ORDER BY state DESC").format(
        _COLUMNS
    )
    with connection.cursor(row_factory=class_row(Generation)) as cursor:
        return cursor.execute(query).fetchall()


def stored(connection: Connection) -> list[Generation]:
    """All generations, those too that were left and may come back."""
    with connection.cursor(row_factory=class_row(Generation)) as cursor:
        return cursor.execute(sql.SQL("SELECT {} FROM generation ORDER BY id").format(_COLUMNS)).fetchall()


def live(connection: Connection) -> Generation | None:
    return next((generation for generation in active(connection) if generation.state == "live"), None)


def want(
    connection: Connection, embedder: str, model: str, model_path: str, dimensions: int, chunker: str, template: str
) -> str:
    """Says which generation is wanted. Returns its state: "live", or "building" when another one answers until it is whole."""
    key = [embedder, model, dimensions, chunker, template]
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
        connection.execute(
            "INSERT INTO generation (embedder, model, model_path, dimensions, chunker, template, state) "
            "VALUES (%s, %s, %s, %s, %s, %s, 'retired') ON CONFLICT (embedder, model, dimensions, chunker, template) "
            "DO UPDATE SET model_path = excluded.model_path",
            [embedder, model, model_path, dimensions, chunker, template],
        )
        row = connection.execute(
            "SELECT id, state FROM generation WHERE (embedder, model, dimensions, chunker, template) = (%s, %s, %s, %s, %s)",
            key,
        ).fetchone()
        assert row is not None
        number, state = int(row[0]), str(row[1])
        _create_tables(connection, number, dimensions)
        connection.execute("UPDATE generation SET state = 'retired' WHERE state = 'building' AND id <> %s", [number])
        if state == "retired":
            other = connection.execute("SELECT 1 FROM generation WHERE state = 'live'").fetchone()
            state = "building" if other else "live"
            connection.execute("UPDATE generation SET state = %s, live_at = now() WHERE id = %s", [state, number])
        return state


def _create_tables(connection: Connection, number: int, dimensions: int) -> None:
    """One row per chunk, nothing mutable beside the vector. HNSW takes halfvec to 4,000 dimensions."""
    names = {"vectors": sql.Identifier(f"vector_{number}"), "lexical": sql.Identifier(f"lexical_{number}")}
    if connection.execute("SELECT to_regclass(%s)", [f"askfolder.vector_{number}"]).fetchone() != (None,):
        return
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
    """Switches to the building generation when it holds every live text. Returns it when it was switched."""
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
        building = next((g for g in active(connection) if g.state == "building"), None)
        if building is None or missing(connection, building.id) > 0:
            return None
        connection.execute("UPDATE generation SET state = 'retired' WHERE state = 'live'")
        connection.execute("UPDATE generation SET state = 'live', live_at = now() WHERE id = %s", [building.id])
        connection.execute(
            "UPDATE document d SET chunks = (SELECT count(*) FROM chunk c WHERE c.document_id = d.id AND c.generation_id = %s)",
            [building.id],
        )
        return building


def answering(connection: Connection) -> dict[str, object] | None:
    """What the vectors of the live index are."""
    if (generation := live(connection)) is None:
        return None
    return {"embedder": generation.embedder, "model": generation.model, "dimensions": generation.dimensions}


def building(connection: Connection) -> dict[str, object] | None:
    """The index that is being built, if one is: its embedder and model, and how many documents it lacks."""
    for generation in active(connection):
        if generation.state == "building":
            return {
                "embedder": generation.embedder,
                "model": generation.model,
                "missing": missing(connection, generation.id),
            }
    return None


def missing(connection: Connection, generation_id: int) -> int:
    """How many live documents a generation does not hold yet."""
    row = connection.execute(
        """
        SELECT count(*) FROM document d
        WHERE d.live_revision IS NOT NULL AND d.state <> 'deleted' AND NOT EXISTS (
            SELECT 1 FROM document_generation g
            WHERE g.document_id = d.id AND g.generation_id = %s AND g.text_version = d.text_version)
        """,
        [generation_id],
    ).fetchone()
    assert row is not None
    return int(row[0])
