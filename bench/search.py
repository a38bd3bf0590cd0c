"""Measure searches in a growing index, together with the bare vector query and a textbook hybrid query in one run.

usage: python -m bench.search [SIZES …] [--dir FOLDER] [--json FILE] [--write]
The chunks come from bench/chunks.py.
"""

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import get_args
from unittest.mock import patch

import numpy as np
from pgvector import HalfVector
from psycopg import sql

from api.ask import cache_scope
from api.retrieval import lexemes as question_lexemes
from api.retrieval import retrieve
from api.retrieval.filters import Filters
from api.retrieval.query import Mode, Query
from bench.chunks import EMBEDDED, IN_A_DOCUMENT, Material, gather, store, without_graph
from bench.growth import Result, lines, plot, write
from shared import db
from shared.cache import QuestionCache
from shared.client import Client
from shared.db import Connection
from shared.ledger import generations
from shared.ledger.generations import Generation
from shared.providers import minilm
from shared.providers.choice import LOCAL_MODEL
from shared.providers.local import LocalEmbedder
from shared.settings import ROOT
from shared.system.servers import Servers
from tests.conftest import KEY, System, free_port
from worker.indexing import inputs, lexemes
from worker.indexing.chunking import CHUNKER_VERSION

CLIENTS = 8
SECONDS = 5.0  # seconds of each throughput measurement
SMALL = 10_000  # maximum chunks for re-indexing every document five times
SHARES = {"": 1.0, "3/": 0.1, "3/1/": 0.01, "3/1/4/": 0.001}  # a key begins with digits (bench/chunks.py)

BARE = "SELECT chunk_id FROM {vectors} ORDER BY embedding <=> %(vector)s LIMIT 100"
EXACT = """
SELECT v.chunk_id FROM {vectors} v JOIN chunk c ON c.id = v.chunk_id JOIN document d ON d.id = c.document_id
WHERE starts_with(d.key, %(source)s) ORDER BY (v.embedding <=> %(vector)s) + 0 LIMIT 10
"""
# The query of most tutorials: reciprocal rank fusion of both ranks. OR replaces AND, which finds almost nothing.
TEXTBOOK = """
WITH question AS (
    SELECT replace(plainto_tsquery('english', %(question)s)::text, ' & ', ' | ')::tsquery AS words
), lexical AS (
    SELECT chunk_id, rank() OVER (ORDER BY score DESC) AS rank FROM (
        SELECT chunk_id, ts_rank_cd(b.words, question.words) AS score FROM bench_words b, question
        WHERE b.words @@ question.words ORDER BY score DESC LIMIT 100) AS l
), dense AS (
    SELECT chunk_id, rank() OVER (ORDER BY distance) AS rank FROM (
        SELECT chunk_id, embedding <=> %(vector)s AS distance FROM {vectors} ORDER BY distance LIMIT 100) AS d
)
SELECT c.id, c.content, coalesce(1.0 / (60 + l.rank), 0) + coalesce(1.0 / (60 + d.rank), 0) AS score
FROM lexical l FULL JOIN dense d USING (chunk_id) JOIN chunk c ON c.id = chunk_id ORDER BY score DESC LIMIT 10
"""

Search = Callable[[Connection, int], object]  # arguments: a connection and the number of a question


def searches(generation: Generation, material: Material) -> dict[str, Search]:
    def statement(text: str) -> Search:
        query = sql.SQL(text).format(vectors=generation.vectors)
        return lambda connection, n: connection.execute(
            query, {"question": material.questions[n], "vector": HalfVector(material.question_vectors[n])}
        ).fetchall()

    def product(mode: Mode) -> Search:
        return lambda connection, n: retrieve.retrieve(
            connection, generation, Query(material.questions[n], 10, mode), material.question_vectors[n]
        )

    return {
        "bare HNSW": statement(BARE),
        **{mode: product(mode) for mode in get_args(Mode)},
        "textbook": statement(TEXTBOOK),
    }


def times(url: str, tasks: dict[str, Search], count: int) -> dict[str, tuple[float, float]]:
    """Run all tasks for each question in a rotating order, and return the percentiles of the best of three rounds.

    The order rotates because the first task of a question loads its pages into memory for the others.
    """
    taken = {name: np.full((3, count), np.inf) for name in tasks}
    with contextlib.ExitStack() as stack:
        connections = {name: stack.enter_context(searching(url)) for name in tasks}
        for turn in range(3):
            for n in range(count):
                first = (n + turn) % len(tasks)
                for name in (list(tasks) * 2)[first : first + len(tasks)]:
                    started = time.perf_counter()
                    tasks[name](connections[name], n)
                    taken[name][turn, n] = (time.perf_counter() - started) * 1000
    return {name: percentiles(rows.min(axis=0)) for name, rows in taken.items()}


def percentiles(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    return float(np.percentile(values, 50)), float(np.percentile(values, 95))


def throughput(url: str, task: Search, count: int, seconds: float) -> float:
    """Return the searches per second of CLIENTS threads, each with its own connection."""
    done = [0] * CLIENTS
    ready = threading.Barrier(CLIENTS)

    def client(number: int) -> None:
        with searching(url) as connection:
            ready.wait()
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                task(connection, (done[number] * CLIENTS + number) % count)
                done[number] += 1

    threads = [threading.Thread(target=client, args=[n]) for n in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / seconds


@contextlib.contextmanager
def searching(url: str) -> Iterator[Connection]:
    with db.connect(url) as connection:
        retrieve.configure(connection)
        yield connection


def recall(connection: Connection, generation: Generation, material: Material, source: str) -> float:
    """Return the share of the ten nearest chunks below `source` in the results of the dense search."""
    nearest = sql.SQL(EXACT).format(vectors=generation.vectors)
    found = []
    for question, vector in zip(material.questions, material.question_vectors, strict=True):
        exact = {row[0] for row in connection.execute(nearest, {"source": source, "vector": HalfVector(vector)})}
        query = Query(question, 10, "dense", Filters(source=source or None))
        passages = retrieve.retrieve(connection, generation, query, vector)
        found.append(len(exact & {p.chunk_id for p in passages}) / len(exact))
    return statistics.mean(found)


def overlap(connection: Connection, generation: Generation, material: Material) -> float:
    """Return the share of the ten best chunks by exhaustive BM25 (or equals) in the results of the lexical search."""
    shares = []
    for question in material.questions:
        search = partial(retrieve.retrieve, connection, generation, Query(question, 10, "lexical"), None)
        found = [passage.bm25 or 0.0 for passage in search()]
        with patch.multiple(question_lexemes, SINGLES=10**12, ROWS=10**12):  # every word selects all its rows
            best = [passage.bm25 or 0.0 for passage in search()]
        if best:
            shares.append(sum(score >= best[-1] - 1e-4 for score in found) / len(best))
    return statistics.mean(shares)


def over_http(work: Path, servers: Servers, generation: Generation, material: Material, result: Result) -> None:
    """Time POST /search with a new and a cached question, its SQL alone, and its cache look-up."""
    (work / "inbox").mkdir(exist_ok=True)
    port = free_port()
    env = {name: value for name, value in os.environ.items() if not name.startswith("ASKFOLDER_")} | {
        "DATABASE_URL": servers.database_url,
        "REDIS_URL": servers.redis_url,
        "ASKFOLDER_INBOX": str(work / "inbox"),
        "ASKFOLDER_DATA": str(work / "data"),
        "ASKFOLDER_PORT": str(port),
        "ASKFOLDER_ADMIN_KEY": KEY,
    }
    system = System(work / "inbox", work / "data", port, env)
    cache, scope = QuestionCache(servers.redis_url), cache_scope(generation, Filters())
    taken: dict[str, list[float]] = defaultdict(list)
    try:
        system.start("web")
        with searching(servers.database_url) as connection, Client(f"http://127.0.0.1:{port}", KEY, 30) as client:
            for n, question in enumerate(["so that everything is loaded", *material.questions], -1):
                asked = f"{question} {result.chunks}"  # a new question for each size
                calls: dict[str, Callable[[], object]] = {
                    "POST /search, question not cached": partial(client.call, "POST", "/search", {"query": asked}),
                    "POST /search, question cached": partial(client.call, "POST", "/search", {"query": asked}),
                    "… its SQL alone": partial(
                        retrieve.retrieve, connection, generation, Query(asked, 10), material.question_vectors[n]
                    ),
                    "… its cache look-up": partial(cache.get, scope, asked),
                }
                for name, call in calls.items():
                    started = time.perf_counter()
                    call()
                    if n >= 0:
                        taken[name].append((time.perf_counter() - started) * 1000)
        if cache.get(scope, asked) is None:
            raise SystemExit("The API did not put a question into the cache: what the bench calls cached was not.")
    finally:
        system.stop()
    result.times |= {name: percentiles(values) for name, values in taken.items()}


def settle(connection: Connection, generation: Generation) -> None:
    """Do the background work of a running system, and build the table of the textbook query."""
    lexemes.count(connection, generation)
    connection.execute("DROP TABLE IF EXISTS bench_words")
    connection.execute(
        "CREATE TABLE bench_words AS SELECT id AS chunk_id, to_tsvector('english', content) AS words FROM chunk"
    )
    connection.execute("CREATE INDEX ON bench_words USING gin (words)")
    connection.execute("VACUUM ANALYZE")


def measure(
    work: Path, servers: Servers, generation: Generation, material: Material, size: int, seconds: float
) -> Result:
    """Measure everything at one size. The chunks are already stored."""
    result, url = Result(size, min(material.real, size)), servers.database_url
    tasks = searches(generation, material)
    with searching(url) as connection:
        settle(connection, generation)
        result.times = times(url, tasks, len(material.questions))
        for name in ("bare HNSW", "hybrid", "textbook"):
            result.a_second[f"{name}, {CLIENTS} clients"] = throughput(
                url, tasks[name], len(material.questions), seconds
            )
        for source, share in SHARES.items():
            if size * share < IN_A_DOCUMENT:
                break
            name = f"recall@10 of 1 in {1 / share:.0f} chunks" if source else "recall@10, dense"
            result.shares[name] = recall(connection, generation, material, source)
        result.shares["overlap@10 with exhaustive BM25"] = overlap(connection, generation, material)
        over_http(work, servers, generation, material, result)
        if size <= SMALL:
            started = time.perf_counter()
            for turn in range(1, 6):
                store(connection, generation, material, 0, size, turn)
            result.a_second["chunks stored, with all indexes"] = 5 * size / (time.perf_counter() - started)
            result.shares["recall@10 after five re-indexings"] = recall(connection, generation, material, "")
    return result


def run(sizes: Sequence[int], folders: Sequence[Path], seconds: float = SECONDS) -> list[Result]:
    """Measure at each size, in a temporary system, and print the progress."""
    sizes = sorted({-(-size // IN_A_DOCUMENT) * IN_A_DOCUMENT for size in sizes})
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        embedder = LocalEmbedder(minilm.prepare(work / "data" / LOCAL_MODEL), threads=2)
        material = gather(folders, embedder, sizes[-1])
        generated, embedded = len(material.contents) - material.real, min(material.real, EMBEDDED)
        print(
            f"{material.real:,} real chunks, {generated:,} generated ones; vectors of the model: {embedded:,}; "
            f"{len(material.questions)} questions: sentences of the chunks",
            flush=True,
        )
        servers = Servers(work / "data")
        servers.start()
        try:
            db.migrate(servers.database_url)
            results: list[Result] = []
            with db.connect(servers.database_url) as connection:
                generations.want(
                    connection,
                    "local",
                    embedder.model,
                    "",
                    embedder.dimensions,
                    f"{CHUNKER_VERSION}/200/0",
                    inputs.TEMPLATE,
                )
                generation = generations.live(connection)
                assert generation is not None
                for before, size in zip([0, *sizes], sizes, strict=False):
                    started = time.perf_counter()
                    with without_graph(connection, generation):
                        store(connection, generation, material, before, size)
                        filled = time.perf_counter() - started
                    built = time.perf_counter() - started - filled
                    print(f"{size:,} chunks: stored in {filled:.0f} s, vector index in {built:.0f} s", flush=True)
                    results.append(measure(work, servers, generation, material, size, seconds))
                    results[-1].a_second["chunks stored, without the vector index"] = (size - before) / filled
        finally:
            servers.stop()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.search", description="Searching as an index grows.")
    parser.add_argument("sizes", nargs="*", type=int, default=[10_000, 100_000], help="numbers of chunks")
    parser.add_argument("--dir", type=Path, action="append", help="whose files the chunks come from")
    parser.add_argument("--json", type=Path, help="file to write all figures to")
    parser.add_argument("--write", action="store_true", help="write docs/performance.md's section and its plot")
    options = parser.parse_args()
    results = run(options.sizes, options.dir or [ROOT / "docs", ROOT])
    print("\n".join(lines(results)))
    if options.json:
        options.json.write_text(json.dumps([vars(r) for r in results], indent=1))
    if options.write:
        write(lines(results), plot(results), ROOT / "docs" / "performance.md")


if __name__ == "__main__":
    main()
