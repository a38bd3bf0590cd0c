"""Retrieval: comparison with exhaustive rankings in NumPy, PostgreSQL's plans, odd questions."""

import functools
import json
import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
from psycopg import sql

from api.retrieval import lexemes
from api.retrieval import retrieve as retrieval
from api.retrieval.filters import Filters, read_filters
from api.retrieval.lexemes import Lexeme, weigh
from api.retrieval.query import COSINE_WEIGHT, Mode, Query
from api.retrieval.retrieve import retrieve
from shared import db
from shared.db import Connection
from shared.ledger import generations
from shared.ledger.generations import Generation
from shared.models import Chunk
from shared.system.servers import Servers
from shared.text import languages
from tests.conftest import new_database, until
from worker.indexing import index, inputs
from worker.indexing import lexemes as counting
from worker.indexing.lexemes import Counting, is_due

DIMENSIONS = 32
MODES: tuple[Mode, ...] = ("hybrid", "dense", "lexical")
ALL = Filters()


@pytest.fixture
def generation(connection: Connection) -> Generation:
    retrieval.configure(connection)
    return new_generation(connection, DIMENSIONS)


def new_generation(connection: Connection, dimensions: int) -> Generation:
    generations.want(connection, "local", "model", "", dimensions, "1/200/28", inputs.TEMPLATE)
    return live_generation(connection)


def live_generation(connection: Connection) -> Generation:
    live = generations.live(connection)
    assert live
    return live


def store(
    connection: Connection,
    generation: Generation,
    texts: Sequence[str],
    vectors: np.ndarray | None = None,
    a_document: int = 1,
    name: str = "doc{}.md",
    configuration: str | None = None,
    metadata: dict[str, Any] | None = None,
) -> None:
    """Store documents with the given numbers of chunks, in the state after ingestion."""
    connection.execute(
        """
        INSERT INTO source (collection_id, kind, root)
        SELECT id, 'folder', '/x' FROM collection ON CONFLICT DO NOTHING
        """
    )
    row = connection.execute("SELECT id, collection_id FROM source").fetchone()
    assert row
    if vectors is None:
        vectors = np.stack([vector_of(text, generation.dimensions) for text in texts])
    first = connection.execute("SELECT count(*) FROM document").fetchone()
    assert first
    hashes = [sha256(f"{text} {n}".encode()).digest() for n, text in enumerate(texts)]
    index.cache(connection, generation, row[1], hashes, vectors)
    with connection.transaction():
        for number, start in enumerate(range(0, len(texts), a_document), first[0]):
            part = texts[start : start + a_document]
            document = connection.execute(
                """
                INSERT INTO document (source_id, collection_id, key, state, wanted_revision, wanted_size,
                    live_revision, text_version, format, metadata, dated)
                VALUES (%s, %s, %s, 'ready', '1-1', 1, '1-1', 1, 'markdown', %s,
                    '2026-01-01'::timestamptz + %s * interval '1 day') RETURNING id
                """,
                [
                    *row,
                    name.format(number),
                    json.dumps(metadata or {"tenth": number % 10, "hundredth": number % 100}),
                    number % 300,
                ],
            ).fetchone()
            assert document
            chunks = [Chunk(n, text, (), None, n * 10_000, n * 10_000 + len(text)) for n, text in enumerate(part)]
            index.replace(
                connection,
                generation,
                document[0],
                list(zip(chunks, hashes[start : start + a_document], strict=True)),
                1,
                configuration or languages.configuration(" ".join(part)),
            )


def vector_of(text: str, dimensions: int = DIMENSIONS) -> np.ndarray:
    generator = np.random.default_rng(int.from_bytes(sha256(text.encode()).digest()[:4], "big"))
    vector = generator.normal(size=dimensions).astype(np.float32)
    return vector / np.linalg.norm(vector)


def found(
    connection: Connection,
    generation: Generation,
    question: str,
    top_k: int = 10,
    mode: Mode = "lexical",
    filters: Filters = ALL,
) -> list[str]:
    vector = None if mode == "lexical" else vector_of(question, generation.dimensions)
    query = Query(question, top_k, mode, filters)
    return [p.content for p in retrieve(connection, generation, query, vector)]


# --- weights of lexemes ----------------------------------------------------------------------------------------------


def test_rare_lexemes_select_rows_alone_and_common_lexemes_in_pairs() -> None:
    rare, common = Lexeme(1, 30, 0, 0), [Lexeme(n, 40_000 + n, 400 * n, 90 * n) for n in (2, 3, 4)]
    queries, idf = weigh([rare, *common], 100_000, 100_000)
    assert queries[0].split(" | ") == ["1", "b2", "b3", "b4"], "strong rows of common lexemes, from the rarest on"
    assert queries[1:] == [], "each pair would bring 32,000 rows"
    larger = weigh([rare, *common], 400_000, 400_000)[0]
    assert larger[0].split(" | ") == ["1", "b2", "b3", "b4", "a2"], "of four times the chunks, twice the rows"
    assert idf.keys() == {1, 2, 3, 4}, "all of them count"
    assert idf[1] == pytest.approx(math.log(1 + (100_000 - 30 + 0.5) / 30.5))
    medium = [Lexeme(n, 3_000, 100, 10) for n in (5, 6, 7)]
    queries, _ = weigh(medium, 100_000, 100_000)
    assert queries[1:] == ["5", "6 | 7", "6", "7"], "three pairs of 180 rows each"


def test_there_is_always_a_candidate() -> None:
    queries, _ = weigh([Lexeme(1, 90_000, None, None)], 100_000, 100_000)
    assert queries == ["1"]
    assert weigh([], 100, 100) == ([], {})


def test_filters_allow_more_frequent_lexemes() -> None:
    lexeme = [Lexeme(n, 1_500, 0, 0) for n in (1, 2, 3)]
    assert weigh(lexeme, 100_000, 100_000)[0][0] == "1"
    assert weigh(lexeme, 100_000, 20_000)[0][0] == "1 | 2 | 3"


def test_uncounted_common_lexemes_have_a_small_weight() -> None:
    _, idf = weigh([Lexeme(1, lexemes.COUNTED, None, None), Lexeme(2, 12, None, None)], 500_000, 500_000)
    assert idf[1] < 1 < idf[2]


# --- rankings --------------------------------------------------------------------------------------------------------


def zipf_texts(count: int, seed: int = 1) -> list[str]:
    """Return texts of invented words with the frequencies of natural language (Zipf)."""
    draw = random.Random(seed)
    letters = "bcdfghklmnprstvz"
    vocabulary = [f"{a}a{b}o{c}u{d}" for a in letters for b in letters for c in letters[:8] for d in letters[:2]]
    weights = [1 / (rank + 3) for rank in range(len(vocabulary))]
    return [" ".join(draw.choices(vocabulary, weights, k=draw.randint(20, 120))) for _ in range(count)]


@functools.cache
def _counts(text: str) -> Counter[str]:
    return Counter(text.split())


def bm25(texts: Sequence[str], question: str) -> np.ndarray:
    """Return the textbook's BM25 score of each text: k1 1.2, b 0.75, an average length of 100."""
    counts = [_counts(text) for text in texts]
    scores = np.zeros(len(texts))
    for word in set(question.split()):
        df = sum(word in count for count in counts)
        idf = math.log(1 + (len(texts) - df + 0.5) / (df + 0.5))
        for n, count in enumerate(counts):
            if tf := count[word]:
                scores[n] += idf * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * count.total() / 100))
    return scores


def test_candidates_contain_the_best_of_all_rows(
    connection: Connection, generation: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = zipf_texts(1_500)
    store(connection, generation, texts, a_document=10, name="{}", configuration="simple")
    counting.count(connection, generation)
    monkeypatch.setattr(lexemes, "SINGLES", 150)
    monkeypatch.setattr(lexemes, "ROWS", 400)
    overlaps = []
    for draw in map(random.Random, range(40)):
        seen = sorted(set(draw.choice(texts).split()))  # of a document: common words and some specific ones
        question = " ".join(draw.sample(seen, min(draw.choice([2, 8, 20]), len(seen))))
        scores = bm25(texts, question)
        got = retrieve(connection, generation, Query(question, 10, "lexical"), None)
        tenth = np.sort(scores)[-10]
        overlaps.append(np.mean([scores[texts.index(p.content)] >= tenth - 1e-3 for p in got]))
        assert got[0].bm25 == pytest.approx(scores[texts.index(got[0].content)], rel=0.02), "the score is BM25"
    assert np.mean(overlaps) >= 0.98


def test_every_candidate_has_both_scores(connection: Connection, generation: Generation) -> None:
    texts = [*zipf_texts(1_200, 2), "bavokub and dagosut are only here"]
    vectors = np.stack([vector_of(text) for text in texts])
    asked = vector_of("bavokub dagosut")
    vectors[-1] -= float(vectors[-1] @ asked) * asked  # its vector is unrelated: only its words match
    vectors[-1] /= np.linalg.norm(vectors[-1])
    store(connection, generation, texts, vectors, a_document=20, configuration="simple")
    passages = retrieve(connection, generation, Query("bavokub dagosut", 100), asked)
    by_words = next(p for p in passages if p.content == texts[-1])
    assert by_words.cosine == pytest.approx(0, abs=0.01)
    assert by_words.bm25
    assert by_words.bm25 == max(p.bm25 or 0 for p in passages)
    weight, echo = COSINE_WEIGHT, retrieval.ECHO
    by_text = {text: vector for text, vector in zip(texts, vectors, strict=True)}
    best = max(passages, key=lambda p: weight * (p.cosine or 0) + (1 - weight) * (p.bm25 or 0) / by_words.bm25)  # type: ignore[operator]
    seen = (1 - echo) * asked + echo * by_text[best.content]
    seen /= np.linalg.norm(seen)
    for passage in passages:
        expected = weight * float(seen @ by_text[passage.content]) + (1 - weight) * (passage.bm25 or 0) / by_words.bm25
        assert passage.score == pytest.approx(expected, abs=0.01)
    assert [p.score for p in passages] == sorted((p.score for p in passages), reverse=True)


@pytest.fixture(scope="module")
def herons(servers: Servers) -> Iterator[tuple[str, list[str]]]:
    """Store 3,000 documents of one chunk each, once. Each test takes a copy of the database, see `copy`."""
    texts = [f"heron {text} {number}" for number, text in enumerate(zipf_texts(3_000, 3))]
    with new_database(servers) as url:
        with db.connect(url) as connection:
            store(connection, new_generation(connection, DIMENSIONS), texts, name="{:04}.md")
        yield url, texts


@pytest.fixture
def copy(servers: Servers, herons: tuple[str, list[str]]) -> Iterator[Connection]:
    """Return a search connection to a copy of the 3,000 documents."""
    with new_database(servers, template=herons[0]) as url, db.connect(url) as connection:
        retrieval.configure(connection)
        yield connection


@pytest.mark.parametrize("share", ["tenth", "hundredth", "prefix"])
def test_filtered_search_finds_what_an_exact_scan_finds(
    copy: Connection, herons: tuple[str, list[str]], share: str
) -> None:
    _, texts = herons
    filters = {
        "tenth": read_filters(metadata={"tenth": 3}),
        "hundredth": read_filters(metadata={"hundredth": 17}),
        "prefix": read_filters(source="000"),
    }[share]
    allowed = {"tenth": range(3, 3_000, 10), "hundredth": range(17, 3_000, 100), "prefix": range(10)}[share]
    generation = live_generation(copy)
    vectors = np.stack([vector_of(texts[n]) for n in allowed])
    recalls = []
    for number in range(30):
        asked = vector_of(f"question {number}")
        exact = {texts[allowed[place]] for place in np.argsort(-(vectors @ asked))[:10]}
        got = retrieve(copy, generation, Query("", 10, "dense", filters), asked)
        recalls.append(len({p.content for p in got} & exact) / 10)
    assert np.mean(recalls) >= 0.95


def test_an_uninformative_ranking_does_no_harm(connection: Connection, generation: Generation) -> None:
    store(connection, generation, [*zipf_texts(300, 4), "der Schornsteinfeger kommt am Dienstag"], a_document=10)
    assert found(connection, generation, "Schornsteinfeger", mode="hybrid")[0].startswith("der Schornsteinfeger")
    assert len(found(connection, generation, "zzzyyy", mode="hybrid")) == 10, "no word is known: meaning alone decides"


# --- words -----------------------------------------------------------------------------------------------------------


def test_each_language_has_a_stemmer_and_common_words(connection: Connection, generation: Generation) -> None:
    german = (
        "Die Mietverträge der Häuser am Hafen werden im Herbst von der Verwaltung gekündigt, und zwar mit einer Frist."
    )
    english = (
        "The leases of the houses at the harbour are terminated by the administration in autumn, with notice of it."
    )
    chinese = "港口的房屋租约将于秋季由管理部门终止。"
    thai = "สัญญาเช่าบ้านที่ท่าเรือจะสิ้นสุดในฤดูใบไม้ร่วง"
    store(connection, generation, [german, english, chinese, thai, "the of and a in the of", *zipf_texts(60, 5)])
    assert found(connection, generation, "Mietvertrag Haus")[0] == german, "singular finds plural"
    assert found(connection, generation, "Wann wird der Mietvertrag gekündigt?")[0] == german
    assert found(connection, generation, "lease of the house terminating")[0] == english
    assert found(connection, generation, "房屋租约何时终止")[0] == chinese
    assert found(connection, generation, "สัญญาเช่า")[0] == thai
    assert german not in found(connection, generation, "the of and at"), "English common words tell nothing of German"
    rows = connection.execute("SELECT DISTINCT configuration FROM lexeme_configuration").fetchall()
    assert {"german", "english"} <= {row[0] for row in rows}


@pytest.mark.parametrize(
    ("asked", "document"),
    [
        ("ERR_CONN_RESET", "the log says err_conn_reset and nothing else"),
        ("E-1042", "replace the fuse when code E-1042 blinks"),
        ("0x80070057", "setup ends with 0x80070057 at once"),
        ("LM-317T", "the regulator LM-317T/NOPB is in drawer 4"),
        ("max_tokens", "set max_tokens to 200"),
        ("get user by id", "def getUserById(number): return users[number]"),
        ("/etc/hosts", "an entry in /etc/hosts is enough"),
        ("1.2.3-rc1", "fixed in version 1.2.3-rc1 already"),
        ("os.path.join", "call os.path.join with both"),
        ("C++", "rewritten in C++ by a student"),
        ("boathouse-rules", "a name of a file, not of a thing"),
    ],
)
def test_literal_searches_find_their_text(
    connection: Connection, generation: Generation, asked: str, document: str
) -> None:
    near = [
        "err conn and a reset",
        "e 1043 and E 1044 blink 42",
        "token and max",
        "user of an id",
        "etc and more hosts",
        "version 1.2.4 rc2",
        "path to join os",
        "c and c",
        "LM-318T",
        "a boathouse",
        "0x80070058",
    ]
    store(connection, generation, near, name="near{}.md")
    store(connection, generation, [document], name="boathouse-rules.{}.md")
    assert found(connection, generation, asked)[0] == document


def test_statistics_exist_after_the_first_document_and_follow_deletions(
    connection: Connection, generation: Generation
) -> None:
    store(connection, generation, ["heron heron", "heron gull", "gull", "tern"], name="{}", configuration="simple")
    scores = bm25(["heron heron", "heron gull", "gull", "tern"], "heron")

    def score() -> float:
        best = retrieve(connection, generation, Query("heron", 10, "lexical"), None)[0].bm25
        assert best
        return best

    def tail(n: int) -> float:  # the file's name counts as one more word
        return 2 * 2.2 / (2 + 1.2 * (0.25 + 0.75 * n / 100))

    assert score() == pytest.approx(scores[0] * tail(3) / tail(2), rel=1e-3), "counted by the question"
    counting.count(connection, generation)
    assert score() == pytest.approx(scores[0] * tail(3) / tail(2), rel=1e-3), "and so are those of one chunk"
    row = connection.execute("SELECT count(*) FROM lexeme_stats WHERE place > 0").fetchone()
    assert row == (2,), "heron and gull: what stands in one chunk is counted when it is asked for"
    connection.execute("DELETE FROM chunk WHERE content = 'heron gull'")
    connection.execute("UPDATE document SET chunks = (SELECT count(*) FROM chunk c WHERE c.document_id = document.id)")
    counting.count(connection, generation)
    assert score() == pytest.approx(math.log(1 + (3 - 1 + 0.5) / 1.5) * tail(3), rel=1e-3)


def test_lexemes_are_recounted_after_enough_changes(
    connection: Connection, generation: Generation, database_url: str
) -> None:
    def due() -> bool:
        connection.execute("SELECT pg_stat_force_next_flush()")
        return is_due(connection, generation)

    store(connection, generation, ["a few words here"] * 30)
    assert not due()
    store(connection, generation, zipf_texts(1_000, 6), a_document=50)
    until(due)
    counting = Counting(database_url)
    counting.start(connection)
    until(lambda: not due())
    assert connection.execute("SELECT chunks FROM lexeme_stats WHERE place = 0").fetchone() == (1_030,)
    assert not due()


def test_a_new_title_updates_every_index_of_the_document(connection: Connection, generation: Generation) -> None:
    """Both the active index and the one being built get the title, although the chunks are unchanged."""
    generations.want(connection, "local", "another", "", DIMENSIONS, "1/200/28", inputs.TEMPLATE)
    both = generations.active(connection)
    store(connection, generation, ["another document"])
    chunks = [(Chunk(0, "text that stands", (), None, 0, 16), b"x" * 32)]
    for each in both:
        index.cache(connection, each, 1, [b"x" * 32], vector_of("x")[None])
    document = connection.execute(
        "INSERT INTO document "
        "(source_id, collection_id, key, state, wanted_revision, wanted_size, live_revision, title) "
        "SELECT id, collection_id, 'a.md', 'ready', '1-1', 1, '1-1', 'Gulls' FROM source RETURNING id"
    ).fetchone()
    assert document
    for version, title in ((1, "Gulls"), (2, "Herons")):
        connection.execute("UPDATE document SET title = %s", [title])
        for each in both:
            with connection.transaction():
                index.replace(connection, each, document[0], chunks, version, "english")
    for each in both:
        for title, count in (("Herons", 1), ("Gulls", 0)):
            assert len(found(connection, each, title)) == count, each.state


# --- odd cases -------------------------------------------------------------------------------------------------------

ODD = [
    "the",
    "?!…",
    "“”'\"«»",
    '"a phrase" AND (b OR NOT c) | & ! <->',
    "' OR 1=1 --",
    "\\",
    "%s %(x)s {}",
    "word " * 5_000,
    " ".join(f"word{n}" for n in range(5_000)),
    "什么时候",
    "ไทย",
    "مرحبا",
    "🦢🦢",
    "a",
    "\u200b",
    "\U0010ffff",
    "x" * 20_000,
]


@pytest.mark.parametrize("question", ODD, ids=range(len(ODD)))
def test_odd_questions_cause_no_error(connection: Connection, generation: Generation, question: str) -> None:
    for mode in MODES:
        assert found(connection, generation, question, mode=mode) == [], "nothing is there yet"
    store(connection, generation, zipf_texts(100, 7), a_document=10)
    for _ in range(2):
        for mode in MODES:
            assert len(found(connection, generation, question, mode=mode)) in ((0, 10) if mode == "lexical" else (10,))
        counting.count(connection, generation)


def test_an_unknown_or_empty_collection_finds_nothing(connection: Connection, generation: Generation) -> None:
    store(connection, generation, zipf_texts(50, 8))
    connection.execute("INSERT INTO collection (name) VALUES ('empty')")
    for name in ("empty", "unknown"):
        for mode in MODES:
            assert found(connection, generation, "bavobub", mode=mode, filters=Filters(collection=name)) == []


def test_deleted_documents_disappear_at_once(connection: Connection, generation: Generation) -> None:
    store(connection, generation, ["heron one", "heron two"])
    connection.execute("UPDATE document SET state = 'deleted' WHERE key = 'doc0.md'")
    for mode in MODES:
        assert found(connection, generation, "heron", mode=mode) == ["heron two"]


def test_many_deleted_documents_do_not_hide_the_others(copy: Connection, herons: tuple[str, list[str]]) -> None:
    _, texts = herons
    asked = vector_of("heron")
    near = np.argsort(-(np.stack([vector_of(text) for text in texts]) @ asked))[:1_050]
    copy.execute("UPDATE document SET state = 'deleted' WHERE key = ANY(%s)", [[f"{n:04}.md" for n in near]])
    modes: tuple[Mode, ...] = ("hybrid", "dense")
    for mode in modes:
        passages = retrieve(copy, live_generation(copy), Query("heron", 10, mode), asked)
        assert len(passages) == 10
        assert not {p.content for p in passages} & {texts[n] for n in near}


# --- plans -----------------------------------------------------------------------------------------------------------


def plan(connection: Connection, generation: Generation, question: str, filters: Filters) -> str:
    """Return the plans of the original statements, as a connection uses them after many executions."""
    seen: list[str] = []
    made = retrieval.statements

    def explained(*arguments: Any) -> list[sql.Composed]:
        return [sql.SQL("EXPLAIN ") + statement for statement in made(*arguments)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "statements", explained)
        patch.setattr(retrieval, "Passage", lambda **row: seen.append(row["QUERY PLAN"]))
        patch.setattr(retrieval, "dict_row", lambda cursor: lambda values: {"QUERY PLAN": values[0], "heading": ()})
        query = Query(question, 10, filters=filters)
        retrieve(connection, generation, query, vector_of(question, generation.dimensions))
    return "\n".join(seen)


@pytest.mark.parametrize("dimensions", [DIMENSIONS, 1536])
def test_indexes_are_used_despite_wrong_planner_estimates(connection: Connection, dimensions: int) -> None:
    retrieval.configure(connection)
    generation = new_generation(connection, dimensions)
    texts = zipf_texts(1_500, 9)
    graph = db.value(connection, "SELECT pg_get_indexdef(%s::regclass)", [f"vector_{generation.id}_embedding_idx"])
    connection.execute(f"DROP INDEX vector_{generation.id}_embedding_idx")
    store(connection, generation, texts, a_document=100)
    connection.execute(graph)  # an index over all rows is built ten times faster than row by row, with equal plans
    connection.execute("ANALYZE")
    asked = " ".join(texts[3].split()[:12])
    wide = plan(connection, generation, asked, ALL)
    assert "embedding_idx" in wide
    assert "bm25_terms_idx" in wide
    assert f"Seq Scan on lexical_{generation.id}" not in wide
    assert f"Seq Scan on vector_{generation.id}" not in wide
    narrow = plan(connection, generation, asked, read_filters(source="doc3.md"))
    assert "embedding_idx" not in narrow, "a hundred chunks are compared one by one"
    assert "bm25_terms_idx" not in narrow
    assert f"Seq Scan on vector_{generation.id}" not in narrow
