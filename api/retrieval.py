"""Finds passages: dense and BM25 candidates, both scores for every candidate, fused, in one round trip."""

import numpy as np
from pgvector import HalfVector
from psycopg import sql
from psycopg.rows import dict_row

from api.filters import Filters
from shared.db import Connection
from shared.generations import Generation
from shared.models import Passage

COSINE_WEIGHT = (
    0.65  # cosine as it is, BM25 by the question's best: won on nine collections against rank fusion and rescaling
)
CANDIDATES = 100
MODES = ("hybrid", "dense", "lexical")


def configure(connection: Connection) -> None:
    """What a connection needs for searching: enough of the graph looked at, and on when a filter leaves too few."""
    connection.execute("SET hnsw.ef_search = 100")
    connection.execute("SET hnsw.iterative_scan = strict_order")


_SEARCH = """
WITH lexeme AS (
    SELECT word, lexeme_place(word) AS place,
           ('''' || replace(replace(word, '\\', '\\\\'), '''', '''''') || '''')::tsquery AS query
    FROM unnest(tsvector_to_array(to_tsvector('english', %(question)s))) AS word
), weighted AS (
    SELECT place, query, ln(1 + (total.n - df.n + 0.5) / (df.n + 0.5)) AS idf
    FROM lexeme, LATERAL (SELECT count(*) AS n FROM {lexical} WHERE words @@ lexeme.query) AS df,
         (SELECT count(*) AS n FROM {lexical}) AS total
), question AS (
    SELECT (SELECT string_agg(query::text, ' | ') FROM weighted)::tsquery AS any_word,
           ('{{' || (SELECT string_agg(place || ':' || idf, ',' ORDER BY place)
                     FROM (SELECT place, sum(idf) AS idf FROM weighted GROUP BY place) AS w) || '}}/1000000000')::sparsevec AS idf
), lexical AS MATERIALIZED (
    SELECT l.chunk_id, l.bm25 <#> (SELECT idf FROM question) AS distance
    FROM {lexical} l JOIN chunk c ON c.id = l.chunk_id JOIN document d ON d.id = c.document_id
    WHERE %(lexical)s AND l.words @@ (SELECT any_word FROM question) AND {visible}
    ORDER BY distance LIMIT %(candidates)s
), dense AS MATERIALIZED (
    SELECT v.chunk_id, v.embedding <=> %(vector)s AS distance
    FROM {vectors} v JOIN chunk c ON c.id = v.chunk_id JOIN document d ON d.id = c.document_id
    WHERE %(dense)s AND {visible}
    ORDER BY v.embedding <=> %(vector)s LIMIT %(candidates)s
), scored AS (
    SELECT chunk_id,
           CASE WHEN %(vector)s::halfvec IS NULL THEN NULL ELSE 1 - (v.embedding <=> %(vector)s) END AS cosine,
           coalesce(-(l.bm25 <#> (SELECT idf FROM question)), 0) AS bm25
    FROM (SELECT chunk_id FROM lexical UNION SELECT chunk_id FROM dense) AS candidate
    JOIN {vectors} v USING (chunk_id) JOIN {lexical} l USING (chunk_id)
), fused AS (
    SELECT *, CASE WHEN NOT %(dense)s THEN bm25 WHEN NOT %(lexical)s THEN cosine
                   ELSE %(weight)s * cosine + (1 - %(weight)s) * coalesce(bm25 / nullif(max(bm25) OVER (), 0), 0) END AS score
    FROM scored
)
SELECT f.chunk_id, c.document_id, d.key AS source, d.title, c.content, f.score, c.page, c.heading_path AS heading,
       c.char_start, c.char_end, f.cosine, f.bm25
FROM fused f JOIN chunk c ON c.id = f.chunk_id JOIN document d ON d.id = c.document_id
ORDER BY f.score DESC, f.chunk_id LIMIT %(top_k)s
"""

_VISIBLE = "d.live_revision IS NOT NULL AND d.state NOT IN ('deleted', 'excluded') AND {}"


def retrieve(
    connection: Connection,
    generation: Generation,
    question: str,
    vector: np.ndarray | None,
    top_k: int,
    mode: str,
    filters: Filters,
) -> list[Passage]:
    """The best passages for a question, best first. vector: float32, shape (dimensions,); None: only words count."""
    dense = mode in ("hybrid", "dense") and vector is not None
    query = sql.SQL(_SEARCH).format(
        vectors=generation.vectors, lexical=generation.lexical, visible=sql.SQL(_VISIBLE).format(filters.condition())
    )
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(
            query,
            {
                "question": question, "vector": HalfVector(vector) if vector is not None else None, "top_k": top_k,
                "candidates": max(CANDIDATES, top_k), "weight": COSINE_WEIGHT, "dense": dense, "lexical": mode != "dense" or not dense,
                **filters.parameters(),
            },
        ).fetchall()  # fmt: skip
    return [Passage(**{**row, "heading": tuple(row["heading"])}) for row in rows]
