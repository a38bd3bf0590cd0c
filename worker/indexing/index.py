"""What a generation holds of a document: chunks, vectors, lexical rows, replaced in one short transaction."""

import json
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from pgvector import Vector
from psycopg import sql

from shared.db import Connection
from shared.errors import TransientError
from shared.ledger.generations import Generation
from shared.models import Chunk
from shared.text import words

AVERAGE_TERMS = (
    100.0  # BM25's average length: a constant, so that a document's score does not depend on what came before it
)

Input = tuple[Chunk, bytes]  # a chunk and the hash of what was, or will be, embedded for it


def known_inputs(connection: Connection, generation: Generation, document_id: int) -> dict[str, bytes]:
    """Content → input hash of the chunks that a generation holds of a document."""
    return dict(
        connection.execute(
            "SELECT content, input_hash FROM chunk WHERE generation_id = %s AND document_id = %s",
            [generation.id, document_id],
        ).fetchall()
    )


def cached(connection: Connection, generation: Generation, collection_id: int, hashes: Sequence[bytes]) -> set[bytes]:
    """Which of these inputs have a vector already."""
    rows = connection.execute(
        "SELECT input_hash FROM vector_cache WHERE collection_id = %s AND model = %s AND dimensions = %s AND input_hash = ANY(%s)",
        [collection_id, generation.model, generation.dimensions, list(hashes)],
    )
    return {row[0] for row in rows}


def cache(
    connection: Connection, generation: Generation, collection_id: int, hashes: Sequence[bytes], vectors: np.ndarray
) -> None:
    """Commits a batch of vectors. vectors: float32, shape (n, dimensions)."""
    with connection.transaction(), connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO vector_cache (collection_id, model, dimensions, input_hash, embedding) VALUES (%s, %s, %s, %s, %s) "
            "ON CONFLICT DO NOTHING",
            [
                (collection_id, generation.model, generation.dimensions, h, Vector(v))
                for h, v in zip(hashes, vectors, strict=True)
            ],
        )


def replace(
    connection: Connection,
    generation: Generation,
    document_id: int,
    inputs: Sequence[Input],
    text_version: int,
    configuration: str,
) -> None:
    """Makes a generation hold exactly these chunks of a document; call it inside the transaction that holds the document.

    Rows whose content and vector stay keep their place in the indexes; with another text their words are made again, as the
    title or the language may have changed. `configuration`: the text search configuration for its language.
    """
    connection.execute(
        "UPDATE document SET configuration = %s WHERE id = %s AND configuration IS DISTINCT FROM %s",
        [configuration, document_id, configuration],
    )
    holds = connection.execute(
        "SELECT text_version FROM document_generation WHERE document_id = %s AND generation_id = %s",
        [document_id, generation.id],
    ).fetchone()
    all_words = holds != (text_version,)
    held: dict[tuple[str, bytes], list[tuple[int, tuple[object, ...]]]] = defaultdict(list)
    rows = connection.execute(
        sql.SQL(
            """
            SELECT c.id, content, input_hash, v.chunk_id IS NOT NULL AND l.chunk_id IS NOT NULL, ordinal, heading_path, page, char_start, char_end
            FROM chunk c LEFT JOIN {vectors} v ON v.chunk_id = c.id LEFT JOIN {lexical} l ON l.chunk_id = c.id
            WHERE c.generation_id = %s AND c.document_id = %s ORDER BY ordinal DESC
            """
        ).format(vectors=generation.vectors, lexical=generation.lexical),
        [generation.id, document_id],
    )
    gone = []
    for number, content, input_hash, whole, ordinal, path, page, start, end in rows:
        if whole:
            held[content, input_hash].append((number, (ordinal, list(path), page, start, end)))
        else:  # damaged: it is made again
            gone.append(number)
    new, shifted, stale_words = [], [], []  # stale: the words are, the vector is not
    for chunk, input_hash in inputs:
        place = (chunk.ordinal, list(chunk.heading_path), chunk.page, chunk.char_start, chunk.char_end)
        if kept := held[chunk.content, input_hash]:
            number, old = kept.pop()
            if old != place:
                shifted.append((*place, number))
            if all_words or old[1] != place[1]:
                stale_words.append(number)
        else:
            names = ("ordinal", "heading_path", "page", "char_start", "char_end")
            new.append(
                {
                    **dict(zip(names, place, strict=True)),
                    "content": chunk.content,
                    "context": chunk.context,
                    "input_hash": input_hash.hex(),
                }
            )
    gone += [number for rows_left in held.values() for number, _ in rows_left]
    if gone:
        connection.execute("DELETE FROM chunk WHERE id = ANY(%s)", [gone])
    if shifted:
        with connection.cursor() as cursor:
            cursor.executemany(
                "UPDATE chunk SET ordinal = %s, heading_path = %s, page = %s, char_start = %s, char_end = %s WHERE id = %s",
                shifted,
            )
    ids = [
        row[0]
        for row in connection.execute(
            """
            INSERT INTO chunk (generation_id, document_id, ordinal, content, context, heading_path, page, char_start, char_end, input_hash)
            SELECT %s, %s, ordinal, content, context, heading_path, page, char_start, char_end, decode(input_hash, 'hex')
            FROM json_to_recordset(%s) AS x(ordinal integer, content text, context text, heading_path text[], page integer,
                                            char_start integer, char_end integer, input_hash text)
            RETURNING id
            """,
            [generation.id, document_id, json.dumps(new)],
        )
    ]
    stored = connection.execute(
        sql.SQL(
            """
            INSERT INTO {vectors} (chunk_id, document_id, collection_id, embedding)
            SELECT c.id, c.document_id, d.collection_id, v.embedding::halfvec
            FROM chunk c JOIN document d ON d.id = c.document_id
            JOIN vector_cache v ON v.collection_id = d.collection_id AND v.model = %s AND v.dimensions = %s AND v.input_hash = c.input_hash
            WHERE c.id = ANY(%s)
            """
        ).format(vectors=generation.vectors),
        [generation.model, generation.dimensions, ids],
    ).rowcount
    if stored != len(ids):
        raise TransientError(
            "Vectors went missing while the document was being stored; it is done again.", retry_after=1
        )
    write_words(connection, generation, ids + stale_words)
    connection.execute(
        "INSERT INTO document_generation (document_id, generation_id, text_version) VALUES (%s, %s, %s) "
        "ON CONFLICT (document_id, generation_id) DO UPDATE SET text_version = excluded.text_version",
        [document_id, generation.id, text_version],
    )
    if generation.state == "live":
        connection.execute("UPDATE document SET chunks = %s WHERE id = %s", [len(inputs), document_id])


def write_words(connection: Connection, generation: Generation, chunk_ids: Sequence[int]) -> None:
    """Makes the lexical rows of chunks: the file's name, title, headings, context and content, in the document's language."""
    rows = connection.execute(
        """
        SELECT c.id, c.document_id, d.collection_id, coalesce(d.configuration, 'english'), d.key, d.title, c.heading_path,
               c.context, c.content
        FROM chunk c JOIN document d ON d.id = c.document_id WHERE c.id = ANY(%s)
        """,
        [list(chunk_ids)],
    ).fetchall()
    made = []
    for number, document_id, collection_id, configuration, key, title, path, context, content in rows:
        text = "\n".join([key, title or "", *path, context or "", content])
        made.append(
            {
                "chunk_id": number,
                "document_id": document_id,
                "collection_id": collection_id,
                "configuration": configuration,
                "content": words.searchable(text),
                "exact": words.exact(text),
            }
        )
    connection.execute(
        sql.SQL(
            """
            INSERT INTO {lexical} (chunk_id, document_id, collection_id, bm25)
            SELECT chunk_id, document_id, collection_id, bm25_chunk(configuration, content, exact, %s)
            FROM json_to_recordset(%s) AS x(chunk_id bigint, document_id bigint, collection_id bigint, configuration text, content text, exact text[])
            ON CONFLICT (chunk_id) DO UPDATE SET bm25 = excluded.bm25
            """
        ).format(lexical=generation.lexical),
        [AVERAGE_TERMS, json.dumps(made)],
    )
    for used in {(row["collection_id"], row["configuration"]) for row in made}:
        connection.execute(
            "INSERT INTO lexeme_configuration (generation_id, collection_id, configuration) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
            [generation.id, *used],
        )


def rename(connection: Connection, generations: Sequence[Generation], document_id: int) -> None:
    """After a document got another name: its lexical rows, which hold the name, are made again. Nothing is embedded."""
    for generation in generations:
        ids = connection.execute(
            "SELECT id FROM chunk WHERE generation_id = %s AND document_id = %s", [generation.id, document_id]
        ).fetchall()
        write_words(connection, generation, [row[0] for row in ids])
