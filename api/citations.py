"""Citations: what an answer claims to quote, compared with the stored text before it is called a citation."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from shared.db import Connection
from shared.models import NO_ANSWER, Answer, Citation, Passage

_FORGED_MARK = re.compile(r"(?<!\w)\[(\d{1,4})\]")  # not argv[1]


@dataclass(frozen=True, slots=True)
class Claim:
    """Words that a statement is said to stand on: characters of the document that `passage`, an index, comes from."""

    passage: int
    char_start: int
    char_end: int
    quote: str


@dataclass(frozen=True, slots=True)
class Statement:
    """A sentence of an answer, with the whitespace that follows it, and what it is said to stand on."""

    text: str
    claims: tuple[Claim, ...] = ()


@dataclass(frozen=True, slots=True)
class Draft:
    """An answer before its citations are checked; without statements: nothing was found.

    `dropped`: citations that pointed nowhere and are no longer among the claims. `warnings`: sentences for the person.
    """

    statements: tuple[Statement, ...] = ()
    dropped: int = 0
    warnings: tuple[str, ...] = ()


def verify(
    connection: Connection, draft: Draft, passages: Sequence[Passage], answerer: str, usage: dict[str, int]
) -> Answer:
    """Keep the claims that stand in the stored text, number them, and say how far they carry the answer.

    A claim stands when its range lies within its passage, the document can still be found, and its text there is
    exactly the quote. Without any, the answer is NO_ANSWER.
    """
    standing = _standing(connection, draft, passages)
    claims = {claim for statement in draft.statements for claim in statement.claims}
    numbers: dict[tuple[int, int, int], int] = {}
    citations: list[Citation] = []
    parts: list[str] = []
    verdict = "grounded"
    for statement in draft.statements:
        marks: list[int] = []
        for claim in statement.claims:
            if claim not in standing:
                continue
            passage = passages[claim.passage]
            place = (passage.document_id, claim.char_start, claim.char_end)
            if place not in numbers:
                numbers[place] = len(numbers) + 1
                citations.append(_citation(numbers[place], passage, claim, *standing[claim]))
            if numbers[place] not in marks:
                marks.append(numbers[place])
        if not marks and (statement.claims or not _connects(statement.text)):
            verdict = "partial"
        parts.append(_marked(statement.text, marks))
    warnings = draft.warnings + _dropped(draft.dropped + len(claims - standing.keys()))
    if not citations:
        return Answer(NO_ANSWER, (), "no_answer", answerer, usage, warnings)
    return Answer("".join(parts).strip(), tuple(citations), verdict, answerer, usage, warnings)


def _standing(
    connection: Connection, draft: Draft, passages: Sequence[Passage]
) -> dict[Claim, tuple[int | None, tuple[str, ...]]]:
    """The claims that stand, each with its own page and heading path: a passage may reach over a page or a heading."""
    claims = list(
        dict.fromkeys(claim for statement in draft.statements for claim in statement.claims if _within(claim, passages))
    )
    if not claims:
        return {}
    rows = connection.execute(
        """
        SELECT claim.place, substr(text.content, claim.char_start + 1, claim.length), text.pages, text.headings
        FROM unnest(%s::bigint[], %s::integer[], %s::integer[])
             WITH ORDINALITY AS claim (document_id, char_start, length, place)
        JOIN document_text text ON text.document_id = claim.document_id
        JOIN document ON document.id = claim.document_id
        WHERE document.live_revision IS NOT NULL AND document.state NOT IN ('deleted', 'excluded')
        """,
        [
            [passages[claim.passage].document_id for claim in claims],
            [claim.char_start for claim in claims],
            [claim.char_end - claim.char_start for claim in claims],
        ],
    )
    found = {claims[place - 1]: (stored, pages, headings) for place, stored, pages, headings in rows}
    return {
        claim: (_page(pages, claim.char_start), _path(headings, claim.char_start))
        for claim, (stored, pages, headings) in found.items()
        if stored == claim.quote
    }


def _page(pages: Sequence[tuple[int, int]], start: int) -> int | None:
    return next((number for first, number in reversed(pages) if first <= start), None)


def _path(headings: Sequence[tuple[int, int, str]], start: int) -> tuple[str, ...]:
    """Titles of the headings that enclose a place, the outermost first."""
    above: list[tuple[int, str]] = []
    for first, level, title in headings:
        if first > start:
            break
        above = [*(entry for entry in above if entry[0] < level), (level, title)]
    return tuple(title for _, title in above)


def _within(claim: Claim, passages: Sequence[Passage]) -> bool:
    if not 0 <= claim.passage < len(passages) or not claim.quote.strip():
        return False
    passage = passages[claim.passage]
    return passage.char_start <= claim.char_start < claim.char_end <= passage.char_end


def _citation(number: int, passage: Passage, claim: Claim, page: int | None, heading: tuple[str, ...]) -> Citation:
    return Citation(
        number=number,
        document_id=passage.document_id,
        chunk_id=passage.chunk_id,
        source=passage.source,
        title=passage.title,
        page=page,
        heading=heading,
        char_start=claim.char_start,
        char_end=claim.char_end,
        quote=claim.quote,
    )


def _connects(text: str) -> bool:
    """Whether a statement only leads over to the next ones: "These are the steps:", a heading, a rule."""
    text = text.strip()
    return text.endswith((":", "：")) or text.startswith("#") or not any(map(str.isalnum, text))


def _marked(text: str, marks: Sequence[int]) -> str:
    """The statement, its marks before the whitespace that ends it. Marks that the text brought along are not ours."""
    text = _FORGED_MARK.sub(r"(\1)", text)
    if not marks:
        return text
    body = text.rstrip()
    gap = "\n" if body.endswith(("```", "~~~")) else " "  # a fence is closed by a line of its own
    return body + gap + "".join(f"[{number}]" for number in marks) + text[len(body) :]


def _dropped(count: int) -> tuple[str, ...]:
    if not count:
        return ()
    what = "1 citation does" if count == 1 else f"{count} citations do"
    return (f"{what} not stand in the documents' text and {'was' if count == 1 else 'were'} left out.",)
