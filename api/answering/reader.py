"""Read the model's content blocks as statements with citations."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from api.verification.citations import Draft, Span, Statement
from shared.errors import PermanentError
from shared.models import NO_ANSWER, Passage, Waiting
from shared.providers.claude import check_end
from shared.text.invisible import places, visible
from shared.text.sentences import sentences

Part = Statement | Draft | Waiting


@dataclass(frozen=True, slots=True)
class Calls:
    """A reply that calls tools. `content`: its blocks, to be sent back; `uses`: id, name and input of each call."""

    content: list[dict[str, Any]]
    uses: list[tuple[str, str, Any]]


class Result:
    """A passage as it is sent: a block for each sentence and the whitespace after it, without invisible characters.

    `content`: the text that is sent; `places`: the offset of each of its characters in the passage; `spans`: for each
    block, the characters of the passage that a citation of it refers to.
    """

    def __init__(self, index: int, passage: Passage) -> None:
        self.index = index
        self.passage = passage
        self.content, self.places = visible(passage.content), places(passage.content)
        cut = sentences(self.content)
        starts = [0, *(start for start, _ in cut[1:]), len(self.content)]
        self.texts = [self.content[a:b] for a, b in pairwise(starts)] if cut else []
        self.spans = [self.span(start, end) for start, end in cut]
        self.source = visible(passage.source)
        self.title = visible(" › ".join([passage.title or passage.source, *passage.heading]))

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Translate offsets of `content` into offsets of the passage."""
        return self.places[start], self.places[end - 1] + 1

    def claim(self, start: int, end: int) -> Span:
        offset = self.passage.char_start
        return Span(self.index, offset + start, offset + end, self.passage.content[start:end])

    def block(self) -> dict[str, Any]:
        return {
            "type": "search_result",
            "source": self.source,
            "title": self.title,
            "content": [{"type": "text", "text": text} for text in self.texts],
            "citations": {"enabled": True},
        }


def read_stream(events: Iterator[Any], *, reader: "Reader", buffered: bool, searching: bool) -> Iterator[Part | Calls]:
    """Yield the statements of one stream, then a Draft; if `searching`, its tool calls instead of both.

    Raises TransientError if the stream breaks off.
    """
    reader.clear()
    stop_reason, ended = None, False
    content: list[Any] = []
    statements: list[Statement] = []
    for event in events:
        if isinstance(event, Waiting):
            yield event
            continue
        if event.type == "content_block_start" and event.content_block.type == "text":
            reader.begin()
        elif event.type == "content_block_delta" and event.delta.type == "text_delta":
            reader.add(event.delta.text)
        elif event.type == "content_block_delta" and event.delta.type == "citations_delta":
            reader.cite(event.delta.citation)
        elif event.type == "content_block_stop":
            reader.close()
        elif event.type == "message_delta":
            stop_reason = event.delta.stop_reason
        elif event.type == "message_stop":
            ended, content = True, event.message.content
            break
        fresh = list(reader.statements())
        statements += fresh
        if not buffered:
            yield from fresh
    if ended and searching and stop_reason == "tool_use":
        yield Calls(
            [part for block in content if (part := _sent_back(block))],
            [(block.id, block.name, block.input) for block in content if block.type == "tool_use"],
        )
        return
    check_end(stop_reason if ended else None)
    if stop_reason == "refusal":
        if statements and not buffered:
            raise PermanentError(
                "Claude stopped and declined to answer. Do not rely on the sentences so far; ask in other words."
            )
        declined = "Claude declined to answer this question. Try to word it differently."
        yield Draft(dropped=reader.dropped, warnings=(declined,))
        return
    cut = stop_reason in ("max_tokens", "model_context_window_exceeded")
    too_long = ("Claude's answer became too long and was cut off. Ask for less at once.",)
    rest = [] if cut else list(reader.statements(end=True))  # a cut sentence is left out
    yield from [*statements, *rest] if buffered else rest
    yield Draft(dropped=reader.dropped, warnings=too_long if cut else (), cut=cut or reader.denied)


def _sent_back(block: Any) -> dict[str, Any] | None:
    """Convert a block of a reply for the next request. None if requests take no such block."""
    names = {
        "text": ("text",),
        "thinking": ("thinking", "signature"),
        "redacted_thinking": ("data",),
        "tool_use": ("id", "name", "input"),
    }.get(block.type)
    if names is None or (block.type == "text" and not block.text.strip()):
        return None
    return {"type": block.type, **{name: getattr(block, name) for name in names}}


class Reader:
    """Text with citations, as it comes in blocks. A sentence is complete when it and its blocks have ended.

    `cited`: the number of citations; `dropped`: the number of those that do not point to the words that they quote.
    `denied`: True if the text says that there is no answer.
    """

    def __init__(self, results: Sequence[Result]) -> None:
        self.results = results
        self.clear()

    def clear(self) -> None:
        """Start again, for another attempt."""
        self.text, self.taken, self.closed = "", 0, 0
        self.blocks: list[tuple[int, int, list[Span]]] = []
        self.claims: list[Span] = []
        self.cited = self.dropped = 0
        self.denied = False

    def begin(self) -> None:
        self.close()

    def add(self, text: str) -> None:
        self.text += text

    def cite(self, citation: Any) -> None:
        self._collect(_span_of(citation, self.results))

    def close(self) -> None:
        """End the block: its citations belong to its text."""
        if len(self.text) > self.closed:
            self.blocks.append((self.closed, len(self.text), self.claims))
        self.closed, self.claims = len(self.text), []

    def statements(self, end: bool = False) -> Iterator[Statement]:
        """Yield the sentences that are complete now, each with the claims of the blocks that it overlaps."""
        if end:
            self.close()
        if self.taken >= self.closed:
            return
        base, tail = self.taken, self.text[self.taken :]
        spans = _spans(tail)
        if not end and self._complete(tail):
            spans = [*spans, (len(tail), len(tail))]  # the text that follows will be another sentence
        for start, stop in spans if end else spans[:-1]:
            first, last = base + start, base + stop
            if len(self.text[:last].rstrip()) > self.closed:
                return
            sentence = self.text[first:last]
            if sentence.strip().replace("’", "'") == NO_ANSWER:
                self.denied = True
            elif sentence:
                overlapping = (
                    claim
                    for begin, until, claims in self.blocks
                    if any(map(str.isalnum, self.text[max(begin, first) : min(until, last)]))
                    for claim in claims
                )
                yield Statement(sentence, tuple(dict.fromkeys(overlapping)))
            self.blocks = [block for block in self.blocks if block[1] > last]
            self.taken = last

    def _complete(self, tail: str) -> bool:
        """True if a sentence ends with the text so far, should another one follow."""
        if self.closed < len(self.text) or not tail.strip():
            return False
        return _spans(f"{tail} Xx")[-1][0] == len(tail) + 1

    def _collect(self, claim: Span | None) -> None:
        self.cited += 1
        if claim is None:
            self.dropped += 1
        else:
            self.claims.append(claim)


class MarkReader(Reader):
    """Text with citations inside: The shop opens at nine. [2: "opens every day at 9:00"]"""

    _MARK = re.compile(r"\[(\d{1,3}(?:, ?\d{1,3})*)(?:\s?[:,]?\s?[\"“„«](.{1,1500}?)[\"”“»]\s?)?\]", re.DOTALL)
    _BEGUN = re.compile(r"\[(?:\d[\d, ]{0,12}(?::?\s?(?:[\"“„«].{0,1500})?)?)?$", re.DOTALL)

    def clear(self) -> None:
        super().clear()
        self.raw = ""

    def begin(self) -> None:
        pass

    def cite(self, citation: Any) -> None:
        pass  # this server was not asked for citations

    def add(self, text: str) -> None:
        self.raw += text
        while mark := self._MARK.search(self.raw):
            self._append(self.raw[: mark.start()])
            self.raw = self.raw[mark.end() :]
            if not mark[2] and self.text[-1:].isalnum():
                self._append(mark[0])  # argv[1]
            else:
                self._mark(mark)
        begun = self._BEGUN.search(self.raw)
        keep = begun.start() if begun else len(self.raw)
        self._append(self.raw[:keep])
        self.raw = self.raw[keep:]

    def close(self) -> None:
        self._append(self.raw)
        self.raw = ""

    def statements(self, end: bool = False) -> Iterator[Statement]:
        if end:
            self.close()
            super().close()
        yield from super().statements(end)

    def _complete(self, tail: str) -> bool:
        return False  # another mark may follow

    def _append(self, text: str) -> None:
        self.text += text
        spans = _spans(self.text[self.closed :])
        if len(spans) > 1:  # the sentence before has no mark
            self._close_at(self.closed + spans[-1][0])

    def _mark(self, mark: re.Match[str]) -> None:
        """Add a mark to the sentence before it."""
        self._collect(self._quoted(int(mark[1]), mark[2]) if mark[2] and mark[1].isdigit() else None)
        claims, self.claims = self.claims, []
        self.text = self.text[: self.closed] + self.text[self.closed :].rstrip(" ")
        if self.text[self.closed :].strip():
            self.claims = claims
            self._close_at(len(self.text))
        elif self.blocks:
            self.blocks[-1][2].extend(claims)

    def _close_at(self, place: int) -> None:
        self.blocks.append((self.closed, place, self.claims))
        self.closed, self.claims = place, []

    def _quoted(self, number: int, quote: str) -> Span | None:
        """Find the quote of a mark in its passage. Spaces and quotation marks may be written differently."""
        if not 0 < number <= len(self.results):
            return None
        result = self.results[number - 1]
        pattern = r"\s+".join(_alike(word) for word in quote.strip().split())
        match = re.search(pattern, result.content) if pattern else None
        return result.claim(*result.span(*match.span())) if match else None


def _alike(word: str) -> str:
    """Build a pattern for a word whose quotation marks may be straight or curly."""
    return re.sub(r"['’‘]", "['’‘]", re.sub(r'["“”„]', '["“”„]', re.escape(word)))


def _span_of(citation: Any, results: Sequence[Result]) -> Span | None:
    """Find the characters that a citation points at. None if there are none, or if they differ from its quote."""
    index, first, last = (
        getattr(citation, name, None) for name in ("search_result_index", "start_block_index", "end_block_index")
    )
    if not (isinstance(index, int) and isinstance(first, int) and isinstance(last, int)):
        return None
    if not (0 <= index < len(results) and 0 <= first < last <= len(results[index].spans)):
        return None
    result = results[index]
    texts = result.texts[first:last]
    cited = " ".join(str(getattr(citation, "cited_text", "")).split())
    if cited not in {" ".join(joined.split()) for joined in ("".join(texts), "".join(map(str.strip, texts)))}:
        return None
    return result.claim(result.spans[first][0], result.spans[last - 1][1])


def _spans(text: str) -> list[tuple[int, int]]:
    """Divide a text into (start, end) of each sentence with the whitespace after it.

    A fenced block of code, and lines without a letter or digit, belong to the sentence before.
    """
    starts: list[int] = []
    fenced = False
    for start, end in sentences(text):
        fence = text.startswith(("```", "~~~"), start)
        if not starts or (not fenced and not fence and any(map(str.isalnum, text[start:end]))):
            starts.append(start)
        fenced ^= fence
    return list(pairwise([0, *starts[1:], len(text)])) if starts else []
