"""Citations: the quotes that an answer claims, compared with the stored text before they are called citations."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from api.verification.plain_text import plain
from api.verification.support import Evidence, Status, is_lead_in, rate
from shared.db import Connection
from shared.models import NO_ANSWER, Answer, Citation, Passage, Sentence
from shared.text.invisible import visible

Resolved = dict["Span", tuple[int | None, tuple[str, ...]]]  # claim → page, heading path
Judge = Callable[[str, Sequence[str]], bool | None]  # sentence, quotes → True if they support it; None: no opinion

_FORGED_MARK = re.compile(r"(?<!\w)\[(\d{1,4})\]")  # not argv[1]
_FORGED_QUOTE = re.compile(r"(?<!\w)\[(\d{1,4}:? ?[\"“„«][^\[\]]*)\]")  # [2: "opens every day at 9:00"]


@dataclass(frozen=True, slots=True)
class Span:
    """Words that a statement claims as its source: characters of the document of `passage`, an index."""

    passage: int
    char_start: int
    char_end: int
    quote: str


@dataclass(frozen=True, slots=True)
class Statement:
    """A sentence of an answer, with the whitespace that follows it, and the spans that it cites."""

    text: str
    claims: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class Draft:
    """An answer before its citations are checked; without statements: no answer was found.

    `dropped`: number of citations that pointed nowhere and were removed from the claims. `warnings`: sentences for the
    reader. `cut`: the answer is incomplete. `usage`: tokens of the model's calls, by Anthropic's names.
    """

    statements: tuple[Statement, ...] = ()
    dropped: int = 0
    warnings: tuple[str, ...] = ()
    cut: bool = False
    answerer: str = "extractive"  # "claude" | "extractive"
    usage: Mapping[str, int] = field(default_factory=dict)


class Verification:
    """Check the statements of one answer in order, each as soon as it is written.

    A claim is resolved if its range lies within its passage, the document can still be found, and its text there is
    exactly the quote. A sentence is rated by its resolved claims (api/verification/support.py). `strict`: unsupported
    sentences are left out; otherwise they are shown, unless every sentence is unsupported. A line that only leads over
    ("These are the steps:") waits for the next sentence.
    """

    def __init__(
        self, passages: Sequence[Passage], strict: bool = True, question: str = "", judge: Judge | None = None
    ) -> None:
        """`judge`: gives a second opinion on a sentence that its quotes support partly."""
        self.passages, self.strict, self.question, self.judge = passages, strict, question, judge
        self.citations: list[Citation] = []
        self.sentences: list[Sentence] = []
        self.dropped = self.removed = 0
        self._warnings: tuple[str, ...] = ()
        self._cut = False
        self._numbers: dict[tuple[int, int, int], int] = {}
        self._forged: set[Span] = set()
        self._lead_ins: list[Statement] = []  # wait for the next sentence
        self._unsupported: list[str] = []  # wait for the first supported sentence
        self._line = ""  # the last line that was shown

    def check(self, statement: Statement, resolved: Resolved) -> Iterator[Citation | Sentence]:
        """Yield what to show now, each citation before the first sentence that it belongs to."""
        if not statement.claims and _may_lead_in(statement.text):
            self._lead_ins.append(statement)
            return
        self._forged.update(claim for claim in statement.claims if claim not in resolved)
        claims = [claim for claim in statement.claims if claim in resolved]
        status = self._status(statement.text, claims)
        if status == "unsupported":
            yield from self._without_support(statement.text)
            return
        waiting, self._unsupported = self._unsupported, []
        yield from (self._shown(text, "unsupported") for text in waiting)
        marks: list[int] = []
        for claim in claims:
            passage = self.passages[claim.passage]
            place = (passage.document_id, claim.char_start, claim.char_end)
            if place not in self._numbers:
                self._numbers[place] = len(self._numbers) + 1
                self.citations.append(_citation(self._numbers[place], passage, claim, *resolved[claim]))
                yield self.citations[-1]
            if self._numbers[place] not in marks:
                marks.append(self._numbers[place])
        yield from self._show_lead_ins(claims, marks)
        yield self._shown(statement.text, status, marks)

    def finish(self, rest: Draft) -> Iterator[Sentence]:
        """End the answer, with the counts and warnings of the complete draft."""
        yield from self._show_lead_ins([], [])  # no sentence followed
        self.dropped = rest.dropped + len(self._forged)
        self._warnings, self._cut = rest.warnings, rest.cut

    def answer(self, answerer: str, usage: dict[str, int]) -> Answer:
        """Return the answer that was shown, after `finish`."""
        warnings = self._warnings + _dropped(self.dropped) + (_removed(self.removed) if self.strict else ())
        if not self.sentences:
            return Answer(NO_ANSWER, (), "no_answer", answerer, usage, warnings, (), self.dropped, self.removed)
        complete = not (self.removed or self._cut) and all(s.status == "supported" for s in self.sentences)
        verdict = "partial" if not complete else "quoted" if answerer == "extractive" else "grounded"
        return Answer(
            "".join(sentence.text for sentence in self.sentences).strip(),
            tuple(self.citations),
            verdict,
            answerer,
            usage,
            warnings,
            tuple(self.sentences),
            self.dropped,
            self.removed,
        )

    def _status(self, text: str, claims: Sequence[Span]) -> Status:
        text, evidence = visible(text), self._evidence(claims)
        status = rate(_FORGED_MARK.sub(" ", text), evidence)
        if status == "partly" and self.judge:
            opinion = self.judge(text, evidence.quotes)
            status = status if opinion is None else "supported" if opinion else "unsupported"
        return status

    def _evidence(self, claims: Sequence[Span]) -> Evidence:
        cited = [self.passages[index] for index in dict.fromkeys(claim.passage for claim in claims)]
        titles = [title for passage in cited for title in (passage.title, *passage.heading) if title]
        return Evidence(
            [visible(claim.quote) for claim in claims],
            visible("\n".join(passage.content for passage in cited)),
            visible("\n".join(titles)),
            visible("\n".join(passage.source for passage in cited)),
            self.question,
        )

    def _show_lead_ins(self, claims: Sequence[Span], marks: Sequence[int]) -> Iterator[Sentence]:
        """Show the lines that lead over to the sentence with these claims."""
        lead_ins, self._lead_ins = self._lead_ins, []
        evidence = self._evidence(claims)
        for statement in lead_ins:
            text = visible(statement.text)
            fits = bool(claims) and is_lead_in(text, evidence)
            if fits or (self.sentences and not any(map(str.isalnum, text))):
                yield self._shown(text, "supported", marks, marked=False)
            elif any(map(str.isalnum, text)):
                yield from self._without_support(text)

    def _without_support(self, text: str) -> Iterator[Sentence]:
        """Leave out an unsupported sentence, or show it after the first supported one: alone it would be the answer."""
        if self.strict:
            self.removed += 1
        elif self.sentences:
            yield self._shown(text, "unsupported")
        else:
            self._unsupported.append(text)

    def _shown(self, text: str, status: Status, numbers: Sequence[int] = (), marked: bool = True) -> Sentence:
        text = without_marks(plain(without_marks(text), self._line))
        text = with_marks(text, numbers if marked else ())
        self._line = (self._line + text).rpartition("\n")[2]
        self.sentences.append(Sentence(text, status, tuple(numbers)))
        return self.sentences[-1]


def resolve(connection: Connection, claimed: Sequence[Span], passages: Sequence[Passage]) -> Resolved:
    """Return the claims whose quotes are in the stored text, each with its own page and heading path.

    A passage may reach over a page or a heading.
    """
    claims = list(dict.fromkeys(claim for claim in claimed if _within(claim, passages)))
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
    return {
        claim: (_page(pages, claim.char_start), _path(headings, claim.char_start))
        for place, stored, pages, headings in rows
        if stored == (claim := claims[place - 1]).quote
    }


def _page(pages: Sequence[tuple[int, int]], start: int) -> int | None:
    return next((number for first, number in reversed(pages) if first <= start), None)


def _path(headings: Sequence[tuple[int, int, str]], start: int) -> tuple[str, ...]:
    """Return the titles of the headings that enclose a place, the outermost first."""
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


def _may_lead_in(text: str) -> bool:
    """True for a statement that may only lead over to the next one: "These are the steps:", a heading, a rule."""
    text = text.strip()
    return text.endswith((":", "：")) or text.startswith("#") or not any(map(str.isalnum, text))


def without_marks(text: str) -> str:
    """Neutralise citation marks that occur in the text itself; behind a bracket, a mark would make a link."""
    for pattern in (_FORGED_MARK, _FORGED_QUOTE):
        text = pattern.sub(
            lambda mark: (" (" if mark.string[max(0, mark.start() - 1)] == "]" else "(") + mark[1] + ")", text
        )
    return text


def with_marks(text: str, marks: Sequence[int]) -> str:
    """Put the marks before the whitespace that ends the statement."""
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
