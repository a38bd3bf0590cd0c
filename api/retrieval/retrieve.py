"""Find passages: dense and BM25 candidates, both scores for every candidate, fused and filtered in one statement.

The weights of the question's lexemes are read first. They decide which rows are candidates, and how these are found.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from pgvector import HalfVector
from psycopg import sql
from psycopg.rows import dict_row

from api.retrieval.filters import Filters
from api.retrieval.lexemes import TOTAL, lexemes_of, sparse, weigh
from api.retrieval.query import Query
from shared.db import Connection
from shared.ledger.generations import Generation
from shared.models import Passage

ECHO = (
    0.3  # weight of the best passage in the vector that candidates are finally compared with; the question has the rest
)
CANDIDATES = 100  # from each side
EXACT = 1_000  # scan exactly if (allowed chunks)² is at most so many times all chunks: it is cheaper than the graph


def configure(connection: Connection) -> None:
    """Set up a connection for searching: by indexes only, deep in the graph, and on while a filter leaves too few.

    The planner believes that bm25_terms is computed again for every row found by its index, and would rather read the
    table, with parallel workers and compiled code.
    """
    connection.execute("SET enable_seqscan = off")
    connection.execute("SET max_parallel_workers_per_gather = 0")
    connection.execute("SET jit = off")
    connection.execute("SET plan_cache_mode = force_generic_plan")
    connection.execute("SET hnsw.ef_search = 100")
    connection.execute("SET hnsw.iterative_scan = strict_order")


def retrieve(connection: Connection, generation: Generation, query: Query, vector: np.ndarray | None) -> list[Passage]:
    """The `top_k` best passages, best first. vector: float32, shape (dimensions,); None: only words are compared."""
    filters = query.filters
    dense = HalfVector(vector) if vector is not None and query.mode != "lexical" else None
    lexemes = lexemes_of(connection, generation, query.text, filters) if query.mode != "dense" or dense is None else {}
    total = lexemes.pop(TOTAL).chunks if TOTAL in lexemes else _total(connection, generation, filters)
    allowed = total if filters.empty else _allowed(connection, filters)
    total = max(total, allowed)
    terms, idf = weigh(list(lexemes.values()), total, allowed)
    if not allowed or (dense is None and not terms):
        return []
    parameters = {
        **filters.parameters(),
        **{f"terms_{number}": term for number, term in enumerate(terms)},
        "vector": dense,
        "generation": generation.id,
        "idf": sparse(idf),
        "top_k": query.top_k,
        "weight": query.weight,
        "echo": ECHO,
    }
    limit = max(CANDIDATES, query.top_k)
    rows: list[dict[str, Any]] = []
    with connection.cursor(row_factory=dict_row) as cursor:
        for statement in statements(generation, filters, total, allowed, limit, dense is not None, len(terms)):
            rows = cursor.execute(statement, parameters).fetchall()
            if len(rows) >= query.top_k:
                break
    return [Passage(**{**row, "heading": tuple(row["heading"])}) for row in rows]


_TOTAL = """
SELECT coalesce(
    (SELECT sum(chunks) FROM lexeme_stats WHERE generation_id = %(generation)s AND place = 0
         AND (%(collection)s::text IS NULL OR collection_id = (SELECT id FROM collection WHERE name = %(collection)s))),
    (SELECT sum(chunks) FROM document d WHERE {visible}
         AND (%(collection)s::text IS NULL OR collection_id = (SELECT id FROM collection WHERE name = %(collection)s))),
    0)
"""


def _total(connection: Connection, generation: Generation, filters: Filters) -> int:
    """Chunks of the collection, as they were last counted."""
    parameters = {"generation": generation.id, "collection": filters.collection}
    return int(connection.execute(sql.SQL(_TOTAL).format(visible=_VISIBLE), parameters).fetchall()[0][0])


def _allowed(connection: Connection, filters: Filters) -> int:
    """Chunks that the filters allow."""
    query = sql.SQL("SELECT coalesce(sum(chunks), 0) FROM document d WHERE {visible} AND {condition}").format(
        visible=_VISIBLE, condition=filters.condition()
    )
    return int(connection.execute(query, filters.parameters()).fetchall()[0][0])


_VISIBLE = sql.SQL("d.live_revision IS NOT NULL AND d.state NOT IN ('deleted', 'excluded')")

# Compare all allowed chunks, if they are few; + 0 keeps the planner from using the graph.
_NARROW = """
allowed AS MATERIALIZED (
    SELECT c.id AS chunk_id FROM document d JOIN chunk c ON c.document_id = d.id AND c.generation_id = %(generation)s
    WHERE {visible} AND {condition}
), lexical AS MATERIALIZED (
    SELECT chunk_id, bm25 <#> %(idf)s::sparsevec AS distance FROM allowed JOIN {lexical} USING (chunk_id)
    WHERE {with_words} AND bm25 <#> %(idf)s::sparsevec < 0 ORDER BY distance LIMIT {limit}
), dense AS MATERIALIZED (
    SELECT chunk_id, embedding, embedding <=> %(vector)s AS distance FROM allowed JOIN {vectors} USING (chunk_id)
    WHERE {with_vector} ORDER BY (embedding <=> %(vector)s) + 0 LIMIT {limit}
)"""

# Otherwise the indexes give candidates; {passes} checks each one's document until enough of them pass.
_WIDE = """
lexical AS MATERIALIZED (
    SELECT chunk_id, distance FROM (
        SELECT chunk_id, document_id, bm25 <#> %(idf)s::sparsevec AS distance
        FROM {lexical} WHERE {candidates} ORDER BY distance OFFSET 0
    ) AS found WHERE {passes} ORDER BY distance LIMIT {limit}
), dense AS MATERIALIZED (
    SELECT chunk_id, embedding, embedding <=> %(vector)s AS distance FROM {vectors} AS found
    WHERE {with_vector} AND {passes} ORDER BY embedding <=> %(vector)s LIMIT {limit}
)"""
_PASSES = "EXISTS (SELECT FROM document d WHERE d.id = found.document_id AND {visible} AND {condition} OFFSET 0)"

_SCORE = """
scored AS MATERIALIZED (
    SELECT coalesce(l.chunk_id, d.chunk_id) AS chunk_id, coalesce(d.embedding, v.embedding) AS embedding,
           1 - coalesce(d.distance, v.embedding <=> %(vector)s::halfvec) AS cosine,
           coalesce(-coalesce(l.distance, w.bm25 <#> %(idf)s::sparsevec), 0) AS bm25
    FROM lexical l FULL JOIN dense d ON d.chunk_id = l.chunk_id
    LEFT JOIN {vectors} v ON v.chunk_id = CASE WHEN d.chunk_id IS NULL THEN l.chunk_id END
    LEFT JOIN {lexical} w ON w.chunk_id = CASE WHEN l.chunk_id IS NULL THEN d.chunk_id END
), first AS (
    SELECT chunk_id, max(bm25) OVER () AS bm25 FROM scored
    ORDER BY %(weight)s * cosine + (1 - %(weight)s) * coalesce(bm25 / nullif(max(bm25) OVER (), 0), 0) DESC, chunk_id
    LIMIT 1
), best AS (
    SELECT embedding, cosine, first.bm25 FROM first JOIN scored USING (chunk_id)
), fused AS (
    SELECT s.chunk_id, s.cosine, s.bm25, {score} AS score FROM scored s, best ORDER BY score DESC, chunk_id
)
SELECT f.chunk_id, d.id AS document_id, d.key AS source, d.title, c.content, f.score, c.page, c.heading_path AS heading,
       c.char_start, c.char_end, f.cosine, f.bm25
FROM fused f, LATERAL (SELECT * FROM chunk WHERE id = f.chunk_id OFFSET 0) AS c,
     LATERAL (SELECT * FROM document d WHERE d.id = c.document_id AND {visible} OFFSET 0) AS d
ORDER BY f.score DESC, f.chunk_id LIMIT %(top_k)s
"""

# cos(question + best passage, passage), from the cosines of both with the passage and with each other.
_FUSED = """
%(weight)s * ((1 - %(echo)s) * s.cosine + %(echo)s * (1 - (s.embedding <=> best.embedding)))
           / sqrt((1 - %(echo)s) ^ 2 + %(echo)s ^ 2 + 2 * (1 - %(echo)s) * %(echo)s * best.cosine)
+ (1 - %(weight)s) * coalesce(s.bm25 / nullif(best.bm25, 0), 0)"""


def statements(
    generation: Generation, filters: Filters, total: int, allowed: int, limit: int, dense: bool, queries: int
) -> Iterator[sql.Composed]:
    """Statements to run until one returns enough. Limits are literals: with parameters the planner would have to guess.

    Without filters, the first statement ranks candidates before it checks their documents, which costs a third less.
    Too few passages remain only if many of the best were deleted a moment ago.
    """
    if allowed * allowed <= EXACT * total:
        ways = [(_NARROW, "TRUE")]
    else:
        ways = [(_WIDE, passes) for passes in ("TRUE", _PASSES)[not filters.empty :]]
    score = _FUSED if dense and queries else "s.cosine" if dense else "s.bm25"
    condition = filters.condition()
    for way, passes in ways:
        yield sql.SQL("WITH" + way + "," + _SCORE).format(
            vectors=generation.vectors,
            lexical=generation.lexical,
            visible=_VISIBLE,
            condition=condition,
            passes=sql.SQL(passes).format(visible=_VISIBLE, condition=condition),
            score=sql.SQL(score),
            limit=sql.Literal(limit),
            with_words=sql.Literal(queries > 0),
            with_vector=sql.Literal(dense),
            candidates=_candidates(queries),
        )


def _candidates(queries: int) -> sql.Composable:
    """A condition with a bitmap for each query: a single query would be evaluated for every row of a common lexeme."""
    if not queries:
        return sql.SQL("false")
    holds = [sql.SQL("bm25_terms(bm25) @@ {}::tsquery").format(sql.Placeholder(f"terms_{i}")) for i in range(queries)]
    meeting = [sql.SQL("({} AND {})").format(*pair) for pair in zip(holds[1::2], holds[2::2], strict=True)]
    return sql.SQL("({})").format(sql.SQL(" OR ").join([holds[0], *meeting]))
