"""Lexemes of a question and their BM25 weights."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from psycopg import sql
from psycopg.rows import class_row

from api.retrieval.filters import Filters
from shared.db import Connection
from shared.ledger.generations import Generation
from shared.text import words

COUNTED = 1_000  # rows to count for a lexeme without statistics; in more rows it is called common
SINGLES, ROWS = 1_000, 2_000  # candidates from single lexemes, and with pairs of common lexemes, in …
LARGE = 100_000  # … so many chunks; in n times as many chunks √n times as many
TOTAL = 0  # the place under which all chunks are counted; no lexeme has it
PAIRED = 8  # common lexemes that pairs are made of


@dataclass(frozen=True, slots=True)
class Lexeme:
    """A lexeme of the question in one of the collection's text search configurations.

    chunks: how many have it; strong, stronger: with a weight of at least 1.6, 1.8; None: not known.
    words: places of the question's words that it was made from; other configurations make other lexemes of a word.
    """

    place: int
    chunks: int
    strong: int | None  # None: not counted yet
    stronger: int | None
    words: Sequence[int] = ()


_LEXEMES = """
WITH searched AS MATERIALIZED (
    SELECT id FROM collection WHERE %(collection)s::text IS NULL OR name = %(collection)s
), made AS (
    SELECT lexeme_place(configuration || ':' || lexeme) AS place, positions AS words
    FROM (SELECT DISTINCT configuration FROM lexeme_configuration
          WHERE generation_id = %(generation)s AND collection_id IN (SELECT id FROM searched)) AS c,
         unnest(to_tsvector(configuration::regconfig, %(words)s))
    UNION ALL SELECT lexeme_place(term), ARRAY[]::smallint[] FROM unnest(%(exact)s::text[]) AS term
    UNION ALL SELECT 0, ARRAY[]::smallint[]
), place AS (
    SELECT place, array_agg(DISTINCT word) FILTER (WHERE word IS NOT NULL) AS words
    FROM made LEFT JOIN unnest(words) AS word ON true GROUP BY place
), known AS (
    SELECT place, sum(chunks) AS chunks, sum(strong) AS strong, sum(stronger) AS stronger
    FROM place JOIN lexeme_stats USING (place)
    WHERE generation_id = %(generation)s AND collection_id IN (SELECT id FROM searched) GROUP BY place
)
SELECT place, coalesce(known.chunks, counted.chunks) AS chunks, strong, stronger,
       coalesce(words, ARRAY[]::smallint[]) AS words
FROM place LEFT JOIN known USING (place), LATERAL (
    SELECT count(*) AS chunks FROM (
        SELECT FROM {lexical} WHERE known.place IS NULL AND bm25_terms(bm25) @@ place::text::tsquery
                                    AND collection_id IN (SELECT id FROM searched) LIMIT %(counted)s) AS found
) AS counted
WHERE coalesce(known.chunks, counted.chunks) > 0
"""


def lexemes_of(connection: Connection, generation: Generation, question: str, filters: Filters) -> dict[int, Lexeme]:
    """The question's lexemes in every language of the collection, by place; with TOTAL, if there are statistics.

    Lexemes without statistics are counted, up to COUNTED rows.
    """
    question_words, exact = words.question(question)
    with connection.cursor(row_factory=class_row(Lexeme)) as cursor:
        rows = cursor.execute(
            sql.SQL(_LEXEMES).format(lexical=generation.lexical),
            {
                "words": " ".join(question_words),
                "exact": exact,
                "generation": generation.id,
                "collection": filters.collection,
                "counted": COUNTED,
            },
        ).fetchall()
    return {row.place: row for row in rows}


def weigh(lexemes: Sequence[Lexeme], total: int, allowed: int) -> tuple[list[str], dict[int, float]]:
    """Tsqueries of index terms for the rows that can be among the best; and inverse document frequencies: place → idf.

    Every lexeme counts in the score of a row, but common ones give no candidates by themselves: only their strong rows
    do, then rows that contain two of them, the rarest pairs first, within the budget. `allowed` of `total` chunks pass
    the filters. The first query is of terms that give candidates alone; the others come in pairs that must both match.
    """
    if not lexemes or not total:
        return [], {}
    known = [_plausible(lexeme, total) for lexeme in lexemes]
    idf = _inverse_frequencies(known, total)
    scale = max(math.sqrt(total / LARGE), 1.0)
    scale *= min(total / max(allowed, 1), 10.0)  # filters drop some of the candidates
    singles, rows = _singles(known, SINGLES * scale)
    rest = sorted((x for x in known if str(x.place) not in singles), key=lambda x: (x.chunks, x.place))[:PAIRED]
    meeting: dict[int, list[int]] = defaultdict(list)
    for a, b in sorted(combinations(rest, 2), key=lambda pair: -idf[pair[0].place] - idf[pair[1].place]):
        rows += 2 * a.chunks * b.chunks / total  # related words meet more often than by chance
        if rows > ROWS * scale:
            break
        meeting[a.place].append(b.place)
    queries = [" | ".join(singles)]
    for place, others in meeting.items():
        queries += [str(place), " | ".join(map(str, others))]
    return queries, idf


def _inverse_frequencies(lexemes: Sequence[Lexeme], total: int) -> dict[int, float]:
    """Place → idf. The frequency is that of the question's word, summed over all text search configurations.

    Otherwise a common word would weigh as a rare one in the few documents that have another language, or a wrong one.
    """
    chunks: Counter[int] = Counter()
    for lexeme in lexemes:
        chunks.update(dict.fromkeys(lexeme.words, lexeme.chunks))
    frequencies = {x.place: min(max((chunks[word] for word in x.words), default=x.chunks), total) for x in lexemes}
    return {place: math.log(1 + (total - n + 0.5) / (n + 0.5)) for place, n in frequencies.items()}


def sparse(idf: dict[int, float]) -> str:
    return "{" + ",".join(f"{place}:{idf[place]:.5g}" for place in sorted(idf)) + "}/1000000000"


def _plausible(lexeme: Lexeme, total: int) -> Lexeme:
    """Correct the count: a common lexeme without statistics is assumed to be in half of all chunks."""
    common = lexeme.strong is None and lexeme.chunks >= COUNTED
    return replace(lexeme, chunks=min(max(lexeme.chunks, total // 2 if common else 0), total))


def _singles(lexemes: Sequence[Lexeme], budget: float) -> tuple[list[str], float]:
    """Index terms that give candidates alone, the rarest first, at least one; and the number of their rows."""
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
