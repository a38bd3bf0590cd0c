"""A document's rows in a generation: chunks, vectors and lexical rows, replaced in one short transaction."""

import json
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from pgvector import Vector
from psycopg import sql

from shared.db import Connection
from shared.errors import TransientError
from shared.ledger.generations import Generation
from shared.models import Chunk
from shared.text import words

# BM25's average length. A constant: a document's score must not depend on the documents before it.
AVERAGE_TERMS = 100.0

Input = tuple[Chunk, bytes]  # a chunk and the hash of its embedding input


@dataclass(frozen=True, slots=True)
class Row:
    """A chunk in the index. `complete`: with its vector and its lexical row; any other is damaged."""

    id: int
    chunk: Chunk
    input_hash: bytes
    complete: bool = True


@dataclass(frozen=True, slots=True)
class Changes:
    """The changes that make the rows of a document equal to its new inputs.

    `shifted`: row ids, each with the chunk that has the same content and vector, elsewhere in the document.
    `stale`: ids of rows that stay, but whose lexical row is to be written again. `gone`: ids of rows to delete.
    """

    new: list[Input] = field(default_factory=list)
    shifted: list[tuple[int, Chunk]] = field(default_factory=list)
    stale: list[int] = field(default_factory=list)
    gone: list[int] = field(default_factory=list)


def compare(rows: Sequence[Row], inputs: Sequence[Input], new_text: bool) -> Changes:
    """Compare the rows of a document, by ordinal, with its inputs. A row with the same content and vector is kept.

    `new_text`: title or language may differ, so that the lexical rows of all kept rows are stale.
    """
    changes = Changes(gone=[row.id for row in rows if not row.complete])
    kept: defaultdict[tuple[str, bytes], deque[Row]] = defaultdict(deque)
    for row in rows:
        if row.complete:
            kept[row.chunk.content, row.input_hash].append(row)
    for chunk, input_hash in inputs:
        if not (same := kept[chunk.content, input_hash]):
            changes.new.append((chunk, input_hash))
            continue
        row = same.popleft()
        if _place(row.chunk) != _place(chunk):
            changes.shifted.append((row.id, chunk))
        if new_text or row.chunk.heading_path != chunk.heading_path:
            changes.stale.append(row.id)
    changes.gone.extend(row.id for same in kept.values() for row in same)
    return changes


def _place(chunk: Chunk) -> tuple[int, list[str], int | None, int, int]:
    return chunk.ordinal, list(chunk.heading_path), chunk.page, chunk.char_start, chunk.char_end


def replace(
    connection: Connection,
    generation: Generation,
    document_id: int,
    inputs: Sequence[Input],
    text_version: int,
    configuration: str,
) -> None:
    """Make a generation hold exactly these chunks of a document; call it in the transaction that locks the document.

    Every input has a vector in the cache. `configuration`: the text search configuration of the document's language.
    """
    connection.execute(
        "UPDATE document SET configuration = %s WHERE id = %s AND configuration IS DISTINCT FROM %s",
        [configuration, document_id, configuration],
    )
    version = connection.execute(
        "SELECT text_version FROM document_generation WHERE document_id = %s AND generation_id = %s",
        [document_id, generation.id],
    ).fetchone()
    changes = compare(_rows(connection, generation, document_id), inputs, new_text=version != (text_version,))
    write(connection, generation, document_id, changes)
    connection.execute(
        """
        INSERT INTO document_generation (document_id, generation_id, text_version) VALUES (%s, %s, %s)
        ON CONFLICT (document_id, generation_id) DO UPDATE SET text_version = excluded.text_version
        """,
        [document_id, generation.id, text_version],
    )
    if generation.state == "live":
        connection.execute("UPDATE document SET chunks = %s WHERE id = %s", [len(inputs), document_id])


def _rows(connection: Connection, generation: Generation, document_id: int) -> list[Row]:
    query = sql.SQL(
        """
        SELECT c.id, input_hash, v.chunk_id IS NOT NULL AND l.chunk_id IS NOT NULL,
               ordinal, content, heading_path, page, char_start, char_end
        FROM chunk c LEFT JOIN {vectors} v ON v.chunk_id = c.id LEFT JOIN {lexical} l ON l.chunk_id = c.id
        WHERE c.generation_id = %s AND c.document_id = %s ORDER BY ordinal
        """
    ).format(vectors=generation.vectors, lexical=generation.lexical)
    return [
        Row(number, Chunk(ordinal, content, tuple(path), page, start, end), input_hash, complete)
        for number, input_hash, complete, ordinal, content, path, page, start, end in connection.execute(
            query, [generation.id, document_id]
        )
    ]


def write(connection: Connection, generation: Generation, document_id: int, changes: Changes) -> None:
    """Write the changes of a document's rows. Raises TransientError if a new input has no vector in the cache."""
    if changes.gone:
        connection.execute("DELETE FROM chunk WHERE id = ANY(%s)", [changes.gone])
    with connection.cursor() as cursor:
        cursor.executemany(
            "UPDATE chunk SET ordinal = %s, heading_path = %s, page = %s, char_start = %s, char_end = %s WHERE id = %s",
            [(*_place(chunk), number) for number, chunk in changes.shifted],
        )
    inserted = connection.execute(
        """
        INSERT INTO chunk (generation_id, document_id, ordinal, content, context, heading_path, page,
                           char_start, char_end, input_hash)
        SELECT %s, %s, ordinal, content, context, heading_path, page, char_start, char_end, decode(input_hash, 'hex')
        FROM json_to_recordset(%s) AS x(ordinal integer, content text, context text, heading_path text[],
                                        page integer, char_start integer, char_end integer, input_hash text)
        RETURNING id
        """,
        [generation.id, document_id, json.dumps([asdict(c) | {"input_hash": h.hex()} for c, h in changes.new])],
    )
    ids = [row[0] for row in inserted]
    vectors = connection.execute(
        sql.SQL(
            """
            INSERT INTO {vectors} (chunk_id, document_id, collection_id, embedding)
            SELECT c.id, c.document_id, d.collection_id, v.embedding::halfvec
            FROM chunk c JOIN document d ON d.id = c.document_id
            JOIN vector_cache v ON v.collection_id = d.collection_id AND v.model = %s AND v.dimensions = %s
                               AND v.input_hash = c.input_hash
            WHERE c.id = ANY(%s)
            """
        ).format(vectors=generation.vectors),
        [generation.model, generation.dimensions, ids],
    ).rowcount
    if vectors != len(ids):
        raise TransientError(
            "Vectors were deleted while the document was stored; the document is stored again.", retry_after=1
        )
    write_words(connection, generation, ids + changes.stale)


def write_words(connection: Connection, generation: Generation, chunk_ids: Sequence[int]) -> None:
    """Write the lexical rows of chunks: file name, title, headings, context and content, in the document's language."""
    ids = list(chunk_ids)
    rows = connection.execute(
        """
        SELECT c.id, d.key, d.title, c.heading_path, c.context, c.content
        FROM chunk c JOIN document d ON d.id = c.document_id WHERE c.id = ANY(%s)
        """,
        [ids],
    )
    lexical = []
    for number, key, title, path, context, content in rows:
        text = "\n".join([key, title or "", *path, context or "", content])
        lexical.append({"chunk_id": number, "content": words.searchable(text), "exact": words.exact(text)})
    connection.execute(
        sql.SQL(
            """
            INSERT INTO {lexical} (chunk_id, document_id, collection_id, bm25)
            SELECT c.id, d.id, d.collection_id,
                   bm25_chunk(coalesce(d.configuration, 'english'), x.content, x.exact, %s)
            FROM json_to_recordset(%s) AS x(chunk_id bigint, content text, exact text[])
            JOIN chunk c ON c.id = x.chunk_id JOIN document d ON d.id = c.document_id
            ON CONFLICT (chunk_id) DO UPDATE SET bm25 = excluded.bm25
            """
        ).format(lexical=generation.lexical),
        [AVERAGE_TERMS, json.dumps(lexical)],
    )
    connection.execute(
        """
        INSERT INTO lexeme_configuration (generation_id, collection_id, configuration)
        SELECT DISTINCT %s::bigint, d.collection_id, coalesce(d.configuration, 'english')
        FROM chunk c JOIN document d ON d.id = c.document_id WHERE c.id = ANY(%s)
        ON CONFLICT DO NOTHING
        """,
        [generation.id, ids],
    )


def rename(connection: Connection, generations: Sequence[Generation], document_id: int) -> None:
    """Write a renamed document's lexical rows again, since they hold its name. Nothing is embedded."""
    for generation in generations:
        ids = connection.execute(
            "SELECT id FROM chunk WHERE generation_id = %s AND document_id = %s", [generation.id, document_id]
        ).fetchall()
        write_words(connection, generation, [row[0] for row in ids])


def known_inputs(connection: Connection, generation: Generation, document_id: int) -> dict[str, bytes]:
    """Return content → input hash of a document's chunks in a generation."""
    rows = connection.execute(
        "SELECT content, input_hash FROM chunk WHERE generation_id = %s AND document_id = %s",
        [generation.id, document_id],
    )
    return dict(rows.fetchall())


def cached(connection: Connection, generation: Generation, collection_id: int, hashes: Sequence[bytes]) -> set[bytes]:
    """Return the hashes of those inputs that have a vector in the collection's cache."""
    rows = connection.execute(
        """
        SELECT input_hash FROM vector_cache
        WHERE collection_id = %s AND model = %s AND dimensions = %s AND input_hash = ANY(%s)
        """,
        [collection_id, generation.model, generation.dimensions, list(hashes)],
    )
    return {row[0] for row in rows}


def cache(
    connection: Connection, generation: Generation, collection_id: int, hashes: Sequence[bytes], vectors: np.ndarray
) -> None:
    """Commit a batch of vectors to the cache. vectors: float32, shape (n, dimensions)."""
    key = (collection_id, generation.model, generation.dimensions)
    with connection.transaction(), connection.cursor() as cursor:
        cursor.executemany(
            """
            INSERT INTO vector_cache (collection_id, model, dimensions, input_hash, embedding)
            VALUES (%s, %s, %s, %s, %s) ON CONFLICT DO NOTHING
            """,
            [(*key, input_hash, Vector(vector)) for input_hash, vector in zip(hashes, vectors, strict=True)],
        )
