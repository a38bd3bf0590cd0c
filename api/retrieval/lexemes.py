"""Lexemes of a question and their BM25 weights."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from psycopg import sql
from psycopg.rows import class_row

from api.retrieval.filters import Filters
from shared.db import Connection
from shared.ledger.generations import Generation
from shared.text import words

COUNTED = 1_000  # rows that are counted for a lexeme without statistics: one that stands in more is called common

SINGLES, ROWS = 1_000, 2_000  # rows that lexemes by themselves, and with pairs of common ones, may bring up to …

LARGE = 100_000  # … so many chunks; beyond, √ as many times more

TOTAL = 0  # the place of no lexeme, under which all chunks are counted

PAIRED = 8  # common lexemes of which pairs are made


@dataclass(frozen=True, slots=True)
class Lexeme:
    """One of the question's. chunks: in how many it stands; strong, stronger: with a weight of at least 1.6, 1.8; NULL: not known."""

    place: int
    chunks: int
    strong: int | None
    stronger: int | None


_LEXEMES = """
WITH searched AS MATERIALIZED (
    SELECT id FROM collection WHERE %(collection)s::text IS NULL OR name = %(collection)s
), place AS (
    SELECT lexeme_place(configuration || ':' || word) AS place
    FROM (SELECT DISTINCT configuration FROM lexeme_configuration
          WHERE generation_id = %(generation)s AND collection_id IN (SELECT id FROM searched)) AS c,
         unnest(tsvector_to_array(to_tsvector(configuration::regconfig, %(words)s))) AS word
    UNION SELECT lexeme_place(term) FROM unnest(%(exact)s::text[]) AS term
    UNION SELECT 0
), known AS (
    SELECT place, sum(chunks) AS chunks, sum(strong) AS strong, sum(stronger) AS stronger
    FROM place JOIN lexeme_stats USING (place)
    WHERE generation_id = %(generation)s AND collection_id IN (SELECT id FROM searched) GROUP BY place
)
SELECT place, coalesce(known.chunks, counted.chunks) AS chunks, strong, stronger
FROM place LEFT JOIN known USING (place), LATERAL (
    SELECT count(*) AS chunks FROM (
        SELECT FROM {lexical} WHERE known.place IS NULL AND bm25_terms(bm25) @@ place::text::tsquery
                                    AND collection_id IN (SELECT id FROM searched) LIMIT %(counted)s) AS found
) AS counted
WHERE coalesce(known.chunks, counted.chunks) > 0
"""


def lexemes_of(connection: Connection, generation: Generation, question: str, filters: Filters) -> dict[int, Lexeme]:
    """The question's lexemes in every language of the collection, by place; TOTAL among them, where there are statistics.

    What these do not know yet is counted, up to COUNTED rows.
    """
    found, exact = words.question(question)
    with connection.cursor(row_factory=class_row(Lexeme)) as cursor:
        rows = cursor.execute(
            sql.SQL(_LEXEMES).format(lexical=generation.lexical),
            {
                "words": " ".join(found),
                "exact": exact,
                "generation": generation.id,
                "collection": filters.collection,
                "counted": COUNTED,
            },
        ).fetchall()
    return {row.place: row for row in rows}


def weigh(lexemes: Sequence[Lexeme], total: int, allowed: int) -> tuple[list[str], dict[int, float]]:
    """Which rows can be among the best: tsqueries of index terms; and the inverse document frequencies: place → idf.

    Common lexemes count for every row that is scored, but by themselves they bring none: their strong rows do, then rows in which
    two of them meet, the rarest first, within the budget. `total` chunks, of which `allowed` pass the filters. The first query
    is of terms that bring rows by themselves; of the further ones each two must both hold.
    """
    if not lexemes or not total:
        return [], {}
    known = [_plausible(lexeme, total) for lexeme in lexemes]
    idf = {lexeme.place: math.log(1 + (total - lexeme.chunks + 0.5) / (lexeme.chunks + 0.5)) for lexeme in known}
    scale = max(math.sqrt(total / LARGE), 1.0) * min(
        total / max(allowed, 1), 10.0
    )  # of what is brought, filters drop some
    singles, rows = _singles(known, SINGLES * scale)
    rest = sorted((x for x in known if str(x.place) not in singles), key=lambda x: (x.chunks, x.place))[:PAIRED]
    meeting: dict[int, list[int]] = defaultdict(list)
    for a, b in sorted(combinations(rest, 2), key=lambda pair: -idf[pair[0].place] - idf[pair[1].place]):
        rows += 2 * a.chunks * b.chunks / total  # words that go together meet more often than by chance
        if rows > ROWS * scale:
            break
        meeting[a.place].append(b.place)
    queries = [" | ".join(singles)]
    for place, others in meeting.items():
        queries += [str(place), " | ".join(map(str, others))]
    return queries, idf


def sparse(idf: dict[int, float]) -> str:
    return "{" + ",".join(f"{place}:{idf[place]:.5g}" for place in sorted(idf)) + "}/1000000000"


def _plausible(lexeme: Lexeme, total: int) -> Lexeme:
    """With a count that can be: without statistics a lexeme of more than COUNTED rows is taken for one of half of all."""
    common = lexeme.strong is None and lexeme.chunks >= COUNTED
    return Lexeme(
        lexeme.place, min(max(lexeme.chunks, total // 2 if common else 0), total), lexeme.strong, lexeme.stronger
    )


def _singles(lexemes: Sequence[Lexeme], budget: float) -> tuple[list[str], float]:
    """Index terms that bring rows by themselves, from the rarest on; at least one. And how many rows they bring."""
    terms = [(x.chunks, str(x.place)) for x in lexemes]
    terms += [(x.strong, f"a{x.place}") for x in lexemes if x.strong]
    terms += [(x.stronger, f"b{x.place}") for x in lexemes if x.stronger]
    chosen: list[str] = []
    rows = 0.0
    for chunks, term in sorted(terms):
        if chosen and rows + chunks > budget:
            break
        chosen.append(term)
        rows += chunks
    return chosen, rows
