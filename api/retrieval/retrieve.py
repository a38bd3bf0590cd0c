"""Finds passages: dense and BM25 candidates, both scores for every candidate, fused and filtered in one statement.

What a question's lexemes weigh is asked first; that decides which rows can be among the best, and how they are looked up.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from pgvector import HalfVector
from psycopg import sql
from psycopg.rows import dict_row

from api.retrieval.filters import Filters
from api.retrieval.lexemes import TOTAL, lexemes_of, sparse, weigh
from shared.db import Connection
from shared.ledger.generations import Generation
from shared.models import Passage

# Cosine as it is, BM25 by the question's best: won on nine collections against rank fusion and rescaling.
COSINE_WEIGHT = 0.65
# The best passage speaks for the question, too: its part in the vector that the candidates are finally compared with.
ECHO = 0.3
CANDIDATES = 100  # of each side
MODES = ("hybrid", "dense", "lexical")
EXACT = 1_000  # an exact scan where (allowed chunks)² is at most so many times all chunks: it costs less than the graph


def configure(connection: Connection) -> None:
    """What a connection needs for searching: enough of the graph looked at, and on when a filter leaves too few; always the indexes.

    The planner takes bm25_terms for something that every row found by its index needs computed again, and would rather read
    the whole table, by several processes and with code compiled for it.
    """
    connection.execute("SET enable_seqscan = off")
    connection.execute("SET max_parallel_workers_per_gather = 0")
    connection.execute("SET jit = off")
    connection.execute("SET plan_cache_mode = force_generic_plan")
    connection.execute("SET hnsw.ef_search = 100")
    connection.execute("SET hnsw.iterative_scan = strict_order")


def retrieve(
    connection: Connection,
    generation: Generation,
    question: str,
    vector: np.ndarray | None,
    top_k: int,
    mode: str,
    filters: Filters,
    cosine_weight: float = COSINE_WEIGHT,
) -> list[Passage]:
    """The best passages for a question, best first. vector: float32, shape (dimensions,); None: only words count."""
    dense = HalfVector(vector) if vector is not None and mode != "lexical" else None
    lexemes = lexemes_of(connection, generation, question, filters) if mode != "dense" or dense is None else {}
    total = lexemes.pop(TOTAL).chunks if TOTAL in lexemes else _total(connection, generation, filters)
    allowed = total if filters.empty else _allowed(connection, filters)
    total = max(total, allowed)
    queries, idf = weigh(list(lexemes.values()), total, allowed)
    if not allowed or (dense is None and not queries):
        return []
    parameters = {
        **filters.parameters(),
        "vector": dense,
        "generation": generation.id,
        "idf": sparse(idf),
        **{f"terms_{i}": terms for i, terms in enumerate(queries)},
        "top_k": top_k,
        "weight": cosine_weight,
        "echo": ECHO,
    }
    rows: list[dict[str, Any]] = []
    with connection.cursor(row_factory=dict_row) as cursor:
        for statement in statements(
            generation, filters, total, allowed, max(CANDIDATES, top_k), dense is not None, len(queries)
        ):
            rows = cursor.execute(statement, parameters).fetchall()
            if len(rows) >= top_k:
                break
    return [Passage(**{**row, "heading": tuple(row["heading"])}) for row in rows]


# --- what the question's lexemes weigh -------------------------------------------------------------------------------


_TOTAL = """
SELECT coalesce(
    (SELECT sum(chunks) FROM lexeme_stats WHERE generation_id = %(generation)s AND place = 0
         AND (%(collection)s::text IS NULL OR collection_id = (SELECT id FROM collection WHERE name = %(collection)s))),
    (SELECT sum(chunks) FROM document d WHERE {visible}
         AND (%(collection)s::text IS NULL OR collection_id = (SELECT id FROM collection WHERE name = %(collection)s))), 0)
"""


def _total(connection: Connection, generation: Generation, filters: Filters) -> int:
    """How many chunks the collection has, as when they were counted last."""
    row = connection.execute(
        sql.SQL(_TOTAL).format(visible=_VISIBLE), {"generation": generation.id, "collection": filters.collection}
    ).fetchone()
    assert row is not None
    return int(row[0])


def _allowed(connection: Connection, filters: Filters) -> int:
    """How many chunks the filters allow."""
    query = sql.SQL("SELECT coalesce(sum(chunks), 0) FROM document d WHERE {visible} AND {condition}")
    row = connection.execute(
        query.format(visible=_VISIBLE, condition=filters.condition()), filters.parameters()
    ).fetchone()
    assert row is not None
    return int(row[0])


# --- the search itself -----------------------------------------------------------------------------------------------

_VISIBLE = sql.SQL("d.live_revision IS NOT NULL AND d.state NOT IN ('deleted', 'excluded')")

# Where few chunks are allowed, all of them are compared; + 0 keeps the graph out of it.
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

# Elsewhere the indexes bring candidates; where it is checked, documents are looked at until there are enough that pass.
_WIDE = """
lexical AS MATERIALIZED (
    SELECT chunk_id, distance FROM (
        SELECT chunk_id, document_id, bm25 <#> %(idf)s::sparsevec AS distance FROM {lexical} WHERE {candidates} ORDER BY distance OFFSET 0
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
    ORDER BY %(weight)s * cosine + (1 - %(weight)s) * coalesce(bm25 / nullif(max(bm25) OVER (), 0), 0) DESC, chunk_id LIMIT 1
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

# cos(question + best, passage), from the cosines of both with the passage and with each other.
_FUSED = """
%(weight)s * ((1 - %(echo)s) * s.cosine + %(echo)s * (1 - (s.embedding <=> best.embedding)))
           / sqrt((1 - %(echo)s) ^ 2 + %(echo)s ^ 2 + 2 * (1 - %(echo)s) * %(echo)s * best.cosine)
+ (1 - %(weight)s) * coalesce(s.bm25 / nullif(best.bm25, 0), 0)"""


def statements(
    generation: Generation, filters: Filters, total: int, allowed: int, limit: int, dense: bool, queries: int
) -> Iterator[sql.Composed]:
    """What is run, until one brings enough. Limits are written out: the planner would have to guess them, and a prepared plan is kept.

    Without filters candidates are first looked for whether or not they may be seen, and that is looked at from the best on: it
    costs a third less. Then too few remain only where many of the best were deleted a moment ago.
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
    """One bitmap for each query, put together: a single query of all would be evaluated for every row of a common lexeme."""
    if not queries:
        return sql.SQL("false")
    holds = [sql.SQL("bm25_terms(bm25) @@ {}::tsquery").format(sql.Placeholder(f"terms_{i}")) for i in range(queries)]
    meeting = [sql.SQL("({} AND {})").format(*pair) for pair in zip(holds[1::2], holds[2::2], strict=True)]
    return sql.SQL("({})").format(sql.SQL(" OR ").join([holds[0], *meeting]))
