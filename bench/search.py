"""Searching as an index grows, against the bare vector query and the textbook's hybrid, in one run.

usage: python -m bench.search [SIZES …] [--dir FOLDER] [--json FILE] [--write]

Chunks come from the folder's files (this checkout and its packages, unless one is named); when they are fewer than a size,
made ones fill it up: half of a chunk's words, half of another's, and a vector between theirs, with noise. What is stored
goes through the product's own tables and functions; the vector index is dropped while filling and built again after it.
"""

import argparse
import contextlib
import json
import os
import re
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from pgvector import HalfVector, Vector
from psycopg import sql

from api import retrieval
from api.retrieval import Filters
from shared import db, documents, generations, local_model, sources
from shared.cache import QuestionCache
from shared.db import Connection
from shared.embedding import LocalEmbedder, embed_all
from shared.errors import AskfolderError
from shared.generations import Generation
from shared.models import Chunk
from shared.providers import LOCAL_MODEL
from shared.servers import Servers
from shared.settings import ROOT
from tests.conftest import KEY, System, free_port
from worker import index
from worker.chunking import CHUNKER_VERSION, chunk
from worker.formats import parse_file

EMBEDDED = 2_000  # chunks that get a vector of the model: some 50 s. The rest of the real ones get made vectors too
QUESTIONS = 100
CLIENTS = 8
SECONDS = 5.0  # of each throughput measurement
IN_A_DOCUMENT = 20  # chunks
SMALL = 10_000  # chunks: up to here every document is re-indexed five times
NOISE = 0.35  # length of the noise on a made vector, whose own is 1
SHARES = {"": 1.0, "3/": 0.1, "3/1/": 0.01, "3/1/4/": 0.001}  # a document's key begins with digits of its number
MARKS = ("<!-- bench.search -->\n", "<!-- /bench.search -->\n")
TYPES = {".md", ".txt", ".rst", ".html", ".py", ".js", ".css", ".toml", ".csv"}

BARE = "SELECT chunk_id FROM {vectors} ORDER BY embedding <=> %(vector)s LIMIT 100"
EXACT = """
SELECT v.chunk_id FROM {vectors} v JOIN chunk c ON c.id = v.chunk_id JOIN document d ON d.id = c.document_id
WHERE starts_with(d.key, %(source)s) ORDER BY (v.embedding <=> %(vector)s) + 0 LIMIT 10
"""
# What most tutorials do, with OR instead of AND, or it would find next to nothing: both ranks, reciprocal rank fusion.
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

Search = Callable[[Connection, int], object]  # of the question with this number


@dataclass
class Material:
    """vectors: float32, shape (len(contents), dimensions); question_vectors likewise. Of the contents, `real` stand in files."""

    contents: list[str]
    vectors: np.ndarray
    real: int
    questions: list[str]
    question_vectors: np.ndarray


@dataclass
class Result:
    """What was measured at one size. Times: milliseconds (median, 95th percentile)."""

    chunks: int
    real: int
    times: dict[str, tuple[float, float]] = field(default_factory=dict)
    a_second: dict[str, float] = field(default_factory=dict)  # searches, or chunks stored
    shares: dict[str, float] = field(default_factory=dict)  # recall@10, overlap@10


def read(folders: Sequence[Path], embedder: LocalEmbedder, most: int) -> list[str]:
    """Distinct chunks of the folders' files, at most so many."""
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
    """Real chunks and questions, as many as there are, and made ones up to `size`."""
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
        vector = vector / np.linalg.norm(vector) + random.normal(0, NOISE / embedder.dimensions**0.5, embedder.dimensions)
        vectors[n] = vector / np.linalg.norm(vector)
        if n >= real:
            one, other = contents[random.integers(0, real)].split(" "), contents[random.integers(0, real)].split(" ")
            contents.append(" ".join(one[i] if random.random() < 0.5 else other[i % len(other)] for i in range(len(one))))
    return Material(contents, vectors, real, questions, question_vectors)


def key_of(number: int) -> str:
    return f"{number % 10}/{number // 10 % 10}/{number // 100 % 10}/file{number}.md"


def store(connection: Connection, generation: Generation, material: Material, start: int, end: int, turn: int = 0) -> None:
    """Puts these chunks into documents, as a worker does: vectors first, then a transaction for each document.

    Another `turn` is another text to the index: every row of the document is made anew.
    """
    hashes = [sha256(f"{turn}:{n}".encode()).digest() for n in range(start, end)]
    copy = "COPY vector_cache (collection_id, model, dimensions, input_hash, embedding) FROM STDIN (FORMAT BINARY)"
    with connection.cursor() as cursor, cursor.copy(copy) as rows:
        rows.set_types(["int8", "text", "int4", "bytea", "vector"])
        for n, digest in enumerate(hashes, start):
            rows.write_row([1, generation.model, generation.dimensions, digest, Vector(material.vectors[n])])
    source = sources.source(connection, "folder", "/bench")
    numbers = range(start // IN_A_DOCUMENT, -(-end // IN_A_DOCUMENT))
    documents.want(connection, source, [(key_of(n), "1-1", 1) for n in numbers], bulk=True)
    connection.execute("UPDATE document SET state = 'ready', live_revision = wanted_revision WHERE live_revision IS NULL")
    ids = dict(connection.execute("SELECT key, id FROM document").fetchall())
    for n in numbers:
        inputs = [
            (Chunk(i, material.contents[place], (), None, 0, 1), hashes[place - start])
            for i, place in enumerate(range(n * IN_A_DOCUMENT, min((n + 1) * IN_A_DOCUMENT, end)))
        ]
        with connection.transaction():
            index.replace(connection, generation, ids[key_of(n)], inputs, turn, all_words=False)


@contextlib.contextmanager
def without_graph(connection: Connection, generation: Generation) -> Iterator[None]:
    """Leaves the vector index out while much is stored."""
    row = connection.execute(
        "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = %s AND indexdef LIKE '%%USING hnsw%%'",
        [f"vector_{generation.id}"],
    ).fetchone()
    assert row is not None
    connection.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(row[0])))
    yield
    connection.execute("SET maintenance_work_mem = '1GB'")
    connection.execute(row[1])


def searches(generation: Generation, material: Material) -> dict[str, Search]:
    def statement(text: str) -> Search:
        query = sql.SQL(text).format(vectors=generation.vectors)
        return lambda connection, n: connection.execute(
            query, {"question": material.questions[n], "vector": HalfVector(material.question_vectors[n])}
        ).fetchall()

    def product(mode: str) -> Search:
        return lambda connection, n: retrieval.retrieve(
            connection, generation, material.questions[n], material.question_vectors[n], 10, mode, Filters()
        )

    return {"bare HNSW": statement(BARE), **{mode: product(mode) for mode in retrieval.MODES}, "textbook": statement(TEXTBOOK)}


def times(url: str, tasks: dict[str, Search], count: int) -> dict[str, tuple[float, float]]:
    """One client, everything in turn for each question; of three rounds a question's fastest counts."""
    taken = {name: np.full((3, count), np.inf) for name in tasks}
    with contextlib.ExitStack() as stack:
        connections = {name: stack.enter_context(searching(url)) for name in tasks}
        for turn in range(3):
            for n in range(count):
                for name, task in tasks.items():
                    started = time.perf_counter()
                    task(connections[name], n)
                    taken[name][turn, n] = (time.perf_counter() - started) * 1000
    return {name: percentiles(rows.min(axis=0)) for name, rows in taken.items()}


def percentiles(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    return float(np.percentile(values, 50)), float(np.percentile(values, 95))


def throughput(url: str, task: Search, count: int, seconds: float) -> float:
    """Searches a second of CLIENTS threads, each with a connection of its own."""
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
        retrieval.configure(connection)
        yield connection


def recall(connection: Connection, generation: Generation, material: Material, source: str) -> float:
    """Of the ten nearest chunks below `source`, the share that the dense search finds. 1 where there is none."""
    query = sql.SQL(EXACT).format(vectors=generation.vectors)
    found = []
    for question, vector in zip(material.questions, material.question_vectors, strict=True):
        exact = {row[0] for row in connection.execute(query, {"source": source, "vector": HalfVector(vector)})}
        passages = retrieval.retrieve(connection, generation, question, vector, 10, "dense", Filters(source=source or None))
        found.append(len(exact & {p.chunk_id for p in passages}) / len(exact) if exact else 1.0)
    return statistics.mean(found)


def overlap(connection: Connection, generation: Generation, material: Material) -> float:
    """Of the ten best chunks by BM25 over all chunks, the share (equal scores are equal) that the lexical search finds."""
    shares = []
    for question in material.questions:
        found = [p.bm25 or 0.0 for p in retrieval.retrieve(connection, generation, question, None, 10, "lexical", Filters())]
        with patch.multiple(retrieval, create=True, SINGLES=10**12, ROWS=10**12):  # every word brings all its rows
            best = [p.bm25 or 0.0 for p in retrieval.retrieve(connection, generation, question, None, 10, "lexical", Filters())]
        shares.append(sum(score >= best[-1] - 1e-4 for score in found) / len(best) if best else 1.0)
    return statistics.mean(shares)


def over_http(work: Path, servers: Servers, generation: Generation, material: Material, result: Result) -> None:
    """POST /search with a question that the cache holds, beside the same search by SQL alone; what the cache saves."""
    (work / "inbox").mkdir(exist_ok=True)
    port = free_port()
    env = {name: value for name, value in os.environ.items() if not name.startswith("ASKFOLDER_")} | {
        "DATABASE_URL": servers.database_url, "REDIS_URL": servers.redis_url, "ASKFOLDER_INBOX": str(work / "inbox"),
        "ASKFOLDER_DATA": str(work / "data"), "ASKFOLDER_PORT": str(port), "ASKFOLDER_ADMIN_KEY": KEY,
    }  # fmt: skip
    system = System(work / "inbox", work / "data", port, env)
    cache = QuestionCache(servers.redis_url)
    by_sql = searches(generation, material)["hybrid"]
    taken: dict[str, list[float]] = {"not cached": [], "cached": [], "SQL": [], "look-up": []}

    def timed(name: str, call: Callable[[], Any]) -> None:
        started = time.perf_counter()
        call()
        taken[name].append((time.perf_counter() - started) * 1000)

    try:
        system.start("web")
        system.search("so that everything is loaded")
        with searching(servers.database_url) as connection:
            for n, question in enumerate(material.questions):
                timed("not cached", lambda q=question: system.search(f"{q} {result.chunks}"))  # type: ignore[misc]
                timed("cached", lambda q=question: system.search(f"{q} {result.chunks}"))  # type: ignore[misc]
                timed("SQL", lambda n=n: by_sql(connection, n))  # type: ignore[misc]
                timed("look-up", lambda q=question: cache.get("local:all-MiniLM-L6-v2-int8:384", f"{q} {result.chunks}"))  # type: ignore[misc]
    finally:
        system.stop()
    names = {"not cached": "POST /search, question not cached", "cached": "POST /search, question cached",
             "SQL": "… its SQL alone", "look-up": "… looking into the cache"}  # fmt: skip
    result.times |= {names[name]: percentiles(values) for name, values in taken.items()}


def settle(connection: Connection, generation: Generation) -> None:
    """What happens in the background of a running system, and the textbook's table."""
    with contextlib.suppress(ImportError):
        from worker import lexemes

        lexemes.count(connection, generation)
    connection.execute("DROP TABLE IF EXISTS bench_words")
    connection.execute("CREATE TABLE bench_words AS SELECT id AS chunk_id, to_tsvector('english', content) AS words FROM chunk")
    connection.execute("CREATE INDEX ON bench_words USING gin (words)")
    connection.execute("VACUUM ANALYZE")


def measure(work: Path, servers: Servers, generation: Generation, material: Material, size: int, seconds: float) -> Result:
    """Everything at one size, which is stored."""
    result, url = Result(size, min(material.real, size)), servers.database_url
    tasks = searches(generation, material)
    with searching(url) as connection:
        settle(connection, generation)
        result.times = times(url, tasks, len(material.questions))
        for name in ("bare HNSW", "hybrid", "textbook"):
            result.a_second[f"{name}, {CLIENTS} clients"] = throughput(url, tasks[name], len(material.questions), seconds)
        for source, share in SHARES.items():
            name = f"recall@10 of 1 in {1 / share:.0f} chunks" if source else "recall@10, dense"
            result.shares[name] = recall(connection, generation, material, source)
        result.shares["overlap@10 with exhaustive BM25"] = overlap(connection, generation, material)
        over_http(work, servers, generation, material, result)
        if size <= SMALL:
            started = time.perf_counter()
            for turn in range(1, 6):
                store(connection, generation, material, 0, size, turn)
            result.a_second["chunks stored, all indexes there"] = 5 * size / (time.perf_counter() - started)
            result.shares["recall@10 after five re-indexings"] = recall(connection, generation, material, "")
    return result


def lines(results: Sequence[Result]) -> list[str]:
    """A Markdown table: a row for each figure, a column for each size."""
    rows = [["", *(f"{r.chunks:,} chunks" + (f" ({r.real:,} real)" if r.real < r.chunks else "") for r in results)], ["---"] * (len(results) + 1)]
    for name in dict.fromkeys(name for r in results for name in r.times):
        cells = []
        for r in results:
            ratio = f" (×{r.times[name][0] / r.times['bare HNSW'][0]:.1f} / ×{r.times[name][1] / r.times['bare HNSW'][1]:.1f})"
            cells.append("{:.2f} / {:.2f} ms".format(*r.times[name]) + (ratio if name in ("hybrid", "textbook") else ""))
        rows.append([f"{name}: median / 95 %", *cells])
    for name in dict.fromkeys(name for r in results for name in r.a_second):
        rows.append([f"{name}: a second", *(f"{r.a_second[name]:,.0f}" if name in r.a_second else "" for r in results)])
    for name in dict.fromkeys(name for r in results for name in r.shares):
        rows.append([name, *(f"{r.shares[name]:.3f}" if name in r.shares else "" for r in results)])
    return [f"| {' | '.join(row)} |" for row in rows]


def plot(results: Sequence[Result]) -> str:
    """SVG: the median and (dashed) the 95th percentile of three searches by the number of chunks, both axes logarithmic."""
    colours = {"bare HNSW": "#6b7280", "hybrid": "#2563eb", "textbook": "#dc2626"}
    values = [v for r in results for name in colours for v in r.times[name]]
    low, high = np.floor(np.log10(min(values))), np.ceil(np.log10(max(values)))
    first, last = np.log10(results[0].chunks), np.log10(results[-1].chunks)

    def x(chunks: float) -> float:
        return 60 + 400 * (np.log10(chunks) - first) / max(last - first, 1e-9)

    def y(ms: float) -> float:
        return 250 - 220 * (np.log10(ms) - low) / (high - low)

    parts = [f'<line x1="60" x2="460" y1="{y(10**e):.0f}" y2="{y(10**e):.0f}" stroke="#d1d5db"/><text x="54" y="{y(10**e) + 4:.0f}" text-anchor="end">{10**e:g} ms</text>' for e in np.arange(low, high + 1)]  # fmt: skip
    parts += [f'<text x="{x(r.chunks):.0f}" y="268" text-anchor="middle">{r.chunks:,} chunks</text>' for r in results]
    for n, (name, colour) in enumerate(colours.items()):
        for which, dash in ((0, ""), (1, ' stroke-dasharray="5 4"')):
            points = " ".join(f"{x(r.chunks):.0f},{y(r.times[name][which]):.0f}" for r in results)
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        parts.append(f'<text x="480" y="{40 + 18 * n}" fill="{colour}">{name}</text>')
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 600 280" font-family="sans-serif" font-size="12" fill="#374151"><rect width="600" height="280" fill="white"/>{"".join(parts)}</svg>\n'


def write(table: Sequence[str], drawing: str, page: Path) -> None:
    """Puts the table between the marks of the page (at its end, when it has none), and the plot beside it."""
    text = page.read_text()
    if MARKS[0] not in text:
        text += f"\n## Searching as an index grows\n\n{MARKS[0]}{MARKS[1]}"
    before, rest = text.split(MARKS[0])
    note = "`make bench-search`: one run. Solid: median, dashed: 95th percentile; textbook: OR query, `ts_rank_cd`, reciprocal rank fusion.\n"
    body = "\n".join([note, *table, "", f"![Milliseconds of a search by the number of chunks]({page.stem}.svg)", ""])
    page.write_text(f"{before}{MARKS[0]}{body}{MARKS[1]}{rest.split(MARKS[1])[1]}")
    page.with_suffix(".svg").write_text(drawing)


def run(sizes: Sequence[int], folders: Sequence[Path], seconds: float = SECONDS) -> list[Result]:
    """Measures at each size, in a temporary system. Prints what it is doing."""
    sizes = sorted({-(-size // IN_A_DOCUMENT) * IN_A_DOCUMENT for size in sizes})
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        embedder = LocalEmbedder(local_model.prepare(work / "data" / LOCAL_MODEL), threads=2)
        material = gather(folders, embedder, sizes[-1])
        print(f"{material.real:,} real chunks, {len(material.contents) - material.real:,} made ones; vectors of the model: "
              f"{min(material.real, EMBEDDED):,}; {len(material.questions)} questions: sentences of the chunks", flush=True)  # fmt: skip
        servers = Servers(work / "data")
        servers.start()
        try:
            db.migrate(servers.database_url)
            results: list[Result] = []
            with db.connect(servers.database_url) as connection:
                generations.want(connection, "local", embedder.model, "", embedder.dimensions, f"{CHUNKER_VERSION}/200/0", index.TEMPLATE)
                generation = generations.live(connection)
                assert generation is not None
                for before, size in zip([0, *sizes], sizes, strict=False):
                    started = time.perf_counter()
                    with without_graph(connection, generation):
                        store(connection, generation, material, before, size)
                        filled = time.perf_counter() - started
                    print(f"{size:,} chunks: stored in {filled:.0f} s, vector index in {time.perf_counter() - started - filled:.0f} s", flush=True)
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
