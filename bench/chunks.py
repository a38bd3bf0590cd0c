"""Real and generated chunks for measurements, stored by the product's own functions.

If there are too few real chunks, generated chunks are added, each of half the words of two real chunks. The first
EMBEDDED chunks get vectors of the model; each further chunk gets a vector between two of these, with noise.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from pgvector import Vector
from psycopg import sql

from shared.db import Connection
from shared.errors import AskfolderError
from shared.ledger import documents, sources
from shared.ledger.generations import Generation
from shared.models import Chunk
from shared.providers.embedder import embed_all
from shared.providers.local import LocalEmbedder
from worker.indexing import index
from worker.indexing.chunking import chunk
from worker.parsing.child import parse_file

EMBEDDED = 2_000  # chunks with a vector of the model; their embedding takes 50 s
QUESTIONS = 100
IN_A_DOCUMENT = 20  # chunks
NOISE = 0.35  # length of the noise on a generated vector, whose length is 1
TYPES = {".md", ".txt", ".rst", ".html", ".py", ".js", ".css", ".toml", ".csv"}


@dataclass
class Material:
    """Chunks and questions. `vectors`, `question_vectors`: float32, (number, dimensions). `real`: texts from files."""

    contents: list[str]
    vectors: np.ndarray
    real: int
    questions: list[str]
    question_vectors: np.ndarray


def read(folders: Sequence[Path], embedder: LocalEmbedder, most: int) -> list[str]:
    """Return at most `most` distinct chunks of the folders' files."""
    found: dict[str, None] = {}
    for path in sorted(p for f in folders for p in f.rglob("*") if p.suffix in TYPES and p.is_file()):
        if len(found) >= most:
            break
        try:
            parsed = parse_file(str(path), path.name, 200_000)
        except (AskfolderError, OSError):
            continue
        found |= dict.fromkeys(c.content for c in chunk(parsed, embedder.count, 200) if len(c.content) > 200)
    if len(found) < 50:
        raise SystemExit(f"{', '.join(map(str, folders))}: too little text to measure with; name another folder.")
    return list(found)[:most]


def gather(folders: Sequence[Path], embedder: LocalEmbedder, size: int) -> Material:
    """Return all real chunks and questions, with generated chunks up to `size`."""
    random = np.random.default_rng(1)
    contents = read(folders, embedder, size)
    random.shuffle(contents)
    real = len(contents)
    sentences = [s for c in contents for s in re.findall(r"(?:[A-Za-z]{2,}[ ,]+){5,12}[a-z]{2,}", c)[:1]]
    questions = sentences[:QUESTIONS]
    question_vectors = np.stack([embedder.embed_question(question) for question in questions])
    vectors = np.zeros((size, embedder.dimensions), np.float32)
    known = min(real, EMBEDDED)

    def keep(places: list[int], batch: np.ndarray) -> None:
        vectors[places] = batch

    embed_all(embedder, contents[:known], keep)
    for n in range(known, size):
        a, b = random.integers(0, known, 2)
        vector = vectors[a] + random.random() * vectors[b]
        vector = vector / np.linalg.norm(vector) + random.normal(
            0, NOISE / embedder.dimensions**0.5, embedder.dimensions
        )
        vectors[n] = vector / np.linalg.norm(vector)
        if n >= real:
            one, other = contents[random.integers(0, real)].split(" "), contents[random.integers(0, real)].split(" ")
            contents.append(
                " ".join(one[i] if random.random() < 0.5 else other[i % len(other)] for i in range(len(one)))
            )
    return Material(contents, vectors, real, questions, question_vectors)


def key_of(number: int) -> str:
    return f"{number % 10}/{number // 10 % 10}/{number // 100 % 10}/file{number}.md"


def store(
    connection: Connection, generation: Generation, material: Material, start: int, end: int, turn: int = 0
) -> None:
    """Store chunks of documents like a worker: vectors first, then one transaction for each document.

    A different `turn` counts as a different text, so every row of the document is written again.
    """
    hashes = [sha256(f"{turn}:{n}".encode()).digest() for n in range(start, end)]
    copy = "COPY vector_cache (collection_id, model, dimensions, input_hash, embedding) FROM STDIN (FORMAT BINARY)"
    with connection.cursor() as cursor, cursor.copy(copy) as rows:
        rows.set_types(["int8", "text", "int4", "bytea", "vector"])
        for n, digest in enumerate(hashes, start):
            rows.write_row([1, generation.model, generation.dimensions, digest, Vector(material.vectors[n])])
    source = sources.source(connection, "folder", "/bench")
    numbers = range(start // IN_A_DOCUMENT, -(-end // IN_A_DOCUMENT))
    documents.enqueue(connection, source, [(key_of(n), "1-1", 1) for n in numbers], bulk=True)
    connection.execute(
        "UPDATE document SET state = 'ready', live_revision = wanted_revision WHERE live_revision IS NULL"
    )
    ids: dict[str, int] = dict(connection.execute("SELECT key, id FROM document").fetchall())
    for n in numbers:
        inputs = [
            (Chunk(i, material.contents[place], (), None, 0, 1), hashes[place - start])
            for i, place in enumerate(range(n * IN_A_DOCUMENT, min((n + 1) * IN_A_DOCUMENT, end)))
        ]
        with connection.transaction():
            index.replace(connection, generation, ids[key_of(n)], inputs, turn, "english")


@contextlib.contextmanager
def without_graph(connection: Connection, generation: Generation) -> Iterator[None]:
    """Drop the vector index during a bulk load, and build it afterwards."""
    row = connection.execute(
        "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = %s AND indexdef LIKE '%%USING hnsw%%'",
        [f"vector_{generation.id}"],
    ).fetchone()
    assert row is not None
    connection.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(row[0])))
    yield
    connection.execute("SET maintenance_work_mem = '1GB'")
    connection.execute(row[1])
