"""Citations: what an answer claims to quote, compared with the stored text before it is called a citation."""

import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from api.verification.plain_text import plain
from api.verification.support import Status, is_lead_in, rate
from shared.db import Connection
from shared.models import NO_ANSWER, Answer, Citation, Passage, Sentence
from shared.text.invisible import visible

Standing = dict["Span", tuple[int | None, tuple[str, ...]]]  # → page, heading path
Judge = Callable[[str, Sequence[str]], bool | None]  # sentence, quotes → whether they carry it

_FORGED_MARK = re.compile(r"(?<!\w)\[(\d{1,4})\]")  # not argv[1]
_FORGED_QUOTE = re.compile(r"(?<!\w)\[(\d{1,4}:? ?[\"“„«][^\[\]]*)\]")  # [2: "opens every day at 9:00"]


@dataclass(frozen=True, slots=True)
class Span:
    """Words that a statement is said to stand on: characters of the document that `passage`, an index, comes from."""

    passage: int
    char_start: int
    char_end: int
    quote: str


@dataclass(frozen=True, slots=True)
class Statement:
    """A sentence of an answer, with the whitespace that follows it, and what it is said to stand on."""

    text: str
    claims: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class Draft:
    """An answer before its citations are checked; without statements: nothing was found.

    `dropped`: citations that pointed nowhere and are no longer among the claims. `warnings`: sentences for the person.
    `cut`: it is not whole. `usage`: tokens of the model's calls, by Anthropic's names.
    """

    statements: tuple[Statement, ...] = ()
    dropped: int = 0
    warnings: tuple[str, ...] = ()
    cut: bool = False
    answerer: str = "extractive"  # "claude" | "extractive"
    usage: Mapping[str, int] = field(default_factory=dict)


def verify(
    connection: Connection,
    draft: Draft,
    passages: Sequence[Passage],
    answerer: str,
    usage: dict[str, int],
    strict: bool = True,
) -> Answer:
    """A whole answer, checked as `Verification` does."""
    verification = Verification(passages, strict)
    for statement in draft.statements:
        deque(verification.check(statement, resolve(connection, statement.claims, passages)), 0)
    deque(verification.finish(draft), 0)
    return verification.answer(answerer, usage)


class Verification:
    """The statements of one answer, checked in their order, each as soon as it is there.

    A claim stands when its range lies within its passage, the document can still be found, and its text there is exactly
    the quote. A sentence is rated by what it says and the claims that stand (api/verification/support.py). `strict`: sentences that
    nothing supports are left out; else they are shown, unless nothing supports any. What only leads over ("These are the
    steps:") waits for what it leads to.
    """

    def __init__(
        self, passages: Sequence[Passage], strict: bool = True, question: str = "", judge: Judge | None = None
    ) -> None:
        """`judge`: the second opinion on a sentence that its quotes support partly; None from it: no opinion."""
        self.passages, self.strict, self.question, self.judge = passages, strict, question, judge
        self.citations: list[Citation] = []
        self.sentences: list[Sentence] = []
        self.dropped = self.removed = 0
        self._warnings: tuple[str, ...] = ()
        self._cut = False
        self._numbers: dict[tuple[int, int, int], int] = {}
        self._forged: set[Span] = set()
        self._waiting: list[Statement] = []  # lead over to what follows
        self._held: list[str] = []
        self._line = ""  # that the last sentence shown ends in

    def check(self, statement: Statement, standing: Standing) -> Iterator[Citation | Sentence]:
        """What is to be shown now: each citation before the first sentence that it belongs to. `standing`: of its claims."""
        if not statement.claims and _connects(statement.text):
            self._waiting.append(statement)
            return
        self._forged.update(claim for claim in statement.claims if claim not in standing)
        claims = [claim for claim in statement.claims if claim in standing]
        status = self._status(statement.text, claims)
        if status == "unsupported":
            yield from self._without_support(statement.text)
            return
        yield from self._late()
        marks: list[int] = []
        for claim in claims:
            passage = self.passages[claim.passage]
            place = (passage.document_id, claim.char_start, claim.char_end)
            if place not in self._numbers:
                self._numbers[place] = len(self._numbers) + 1
                self.citations.append(_citation(self._numbers[place], passage, claim, *standing[claim]))
                yield self.citations[-1]
            if self._numbers[place] not in marks:
                marks.append(self._numbers[place])
        yield from self._lead(claims, marks)
        yield self._shown(statement.text, status, marks)

    def finish(self, rest: Draft) -> Iterator[Sentence]:
        """The end of the answer, with what the draft says of it as a whole."""
        yield from self._lead([], [])  # they led nowhere
        self.dropped = rest.dropped + len(self._forged)
        self._warnings, self._cut = rest.warnings, rest.cut

    def answer(self, answerer: str, usage: dict[str, int]) -> Answer:
        """The answer that was shown, after `finish`."""
        warnings = self._warnings + _dropped(self.dropped) + (_removed(self.removed) if self.strict else ())
        if not self.sentences:
            return Answer(NO_ANSWER, (), "no_answer", answerer, usage, warnings, (), self.dropped, self.removed)
        whole = not (self.removed or self._cut) and all(one.status == "supported" for one in self.sentences)
        return Answer(
            "".join(sentence.text for sentence in self.sentences).strip(),
            tuple(self.citations),
            "grounded" if whole else "partial",
            answerer,
            usage,
            warnings,
            tuple(self.sentences),
            self.dropped,
            self.removed,
        )

    def _status(self, text: str, claims: Sequence[Span]) -> Status:
        text, quotes = visible(text), [visible(claim.quote) for claim in claims]
        status = rate(_FORGED_MARK.sub(" ", text), quotes, *self._surroundings(claims), self.question)
        if status == "partly" and self.judge:
            opinion = self.judge(text, quotes)
            status = status if opinion is None else "supported" if opinion else "unsupported"
        return status

    def _surroundings(self, claims: Sequence[Span]) -> tuple[str, str, str]:
        """The passages that claims stand in; their titles and headings; their sources."""
        cited = [self.passages[index] for index in dict.fromkeys(claim.passage for claim in claims)]
        titles = [title for passage in cited for title in (passage.title, *passage.heading) if title]
        sources = (passage.source for passage in cited)
        content = "\n".join(passage.content for passage in cited)
        return visible(content), visible("\n".join(titles)), visible("\n".join(sources))

    def _lead(self, claims: Sequence[Span], marks: Sequence[int]) -> Iterator[Sentence]:
        """What waited for the sentence that has these claims."""
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            text = visible(one.text)
            quotes = [visible(claim.quote) for claim in claims]
            fits = bool(quotes) and is_lead_in(text, quotes, *self._surroundings(claims), self.question)
            if fits or (self.sentences and not any(map(str.isalnum, text))):
                yield self._shown(text, "supported", marks, marked=False)
            elif any(map(str.isalnum, text)):
                yield from self._without_support(text)

    def _without_support(self, text: str) -> Iterator[Sentence]:
        """A sentence that nothing supports: never shown before one that something does, as it would be all there is."""
        if self.strict:
            self.removed += 1
            return
        if self.sentences:
            yield self._shown(text, "unsupported")
        else:
            self._held.append(text)

    def _late(self) -> Iterator[Sentence]:
        held, self._held = self._held, []
        yield from (self._shown(text, "unsupported") for text in held)

    def _shown(self, text: str, status: Status, numbers: Sequence[int] = (), marked: bool = True) -> Sentence:
        text = _marked(_forged(plain(_forged(text), self._line)), numbers if marked else ())
        self._line = (self._line + text).rpartition("\n")[2]
        self.sentences.append(Sentence(text, status, tuple(numbers)))
        return self.sentences[-1]


def resolve(connection: Connection, stated: Sequence[Span], passages: Sequence[Passage]) -> Standing:
    """The claims that stand, each with its own page and heading path: a passage may reach over a page or a heading."""
    claims = list(dict.fromkeys(claim for claim in stated if _within(claim, passages)))
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


def _within(claim: Span, passages: Sequence[Passage]) -> bool:
    if not 0 <= claim.passage < len(passages) or not claim.quote.strip():
        return False
    passage = passages[claim.passage]
    return passage.char_start <= claim.char_start < claim.char_end <= passage.char_end


def _citation(number: int, passage: Passage, claim: Span, page: int | None, heading: tuple[str, ...]) -> Citation:
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


def _forged(text: str) -> str:
    """Marks that a text brought along are not ours; one behind a bracket would make a link."""
    for pattern in (_FORGED_MARK, _FORGED_QUOTE):
        text = pattern.sub(
            lambda mark: (" (" if mark.string[max(0, mark.start() - 1)] == "]" else "(") + mark[1] + ")", text
        )
    return text


def _marked(text: str, marks: Sequence[int]) -> str:
    """The statement, its marks before the whitespace that ends it."""
    if not marks:
        return text
    body = text.rstrip()
    gap = "\n" if body.endswith(("```", "~~~")) else " "  # a fence is closed by a line of its own
    return body + gap + "".join(f"[{number}]" for number in marks) + text[len(body) :]


def _removed(count: int) -> tuple[str, ...]:
    if not count:
        return ()
    what = "1 sentence was" if count == 1 else f"{count} sentences were"
    return (f"{what} left out, as no words of the documents support {'it' if count == 1 else 'them'}.",)


def _dropped(count: int) -> tuple[str, ...]:
    if not count:
        return ()
    what = "1 citation does" if count == 1 else f"{count} citations do"
    return (f"{what} not stand in the documents' text and {'was' if count == 1 else 'were'} left out.",)
