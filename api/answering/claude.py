"""Answers by Claude: passages go as search results, sentences come back with the words that they cite."""

import functools
import json
import secrets
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from api.answering.reader import MarkReader, Part, Reader, Result, read_stream
from api.verification.citations import Draft
from shared.errors import RefusedError, TransientError
from shared.models import NO_ANSWER, Passage, Waiting
from shared.providers.claude import Claude, Deadline, prompt
from shared.providers.meter import BudgetError, Tokens

MAX_TOKENS = 4096  # of an answer and the thoughts before it

_RULES = prompt(__file__, "answer.md")
SYSTEM = _RULES.format(cite=prompt(__file__, "answer_cite.md"), no_answer=NO_ANSWER)
SYSTEM_MARKS = _RULES.format(cite=prompt(__file__, "answer_mark.md"), no_answer=NO_ANSWER)


def answer(
    claude: Claude, model: str, question: str, passages: Sequence[Passage], deadline: Deadline, buffered: bool = True
) -> Generator[Part | Tokens]:
    """Yield Claude's statements one by one, then a Draft without statements, and the tokens of each request.

    `buffered`: no statement comes before the answer is complete, so that one that breaks off can be tried again;
    else an error may follow statements. Closing the generator ends the call. Raises as `Claude.stream` does.

    Servers other than Anthropic's may not know citations: one that gives none is asked for marks with quotes instead.
    """
    results = [result for index, passage in enumerate(passages) if (result := Result(index, passage)).spans]
    if not results:
        yield Draft()
        return
    ask = functools.partial(ask_model, claude, model, deadline=deadline, buffered=buffered)
    cites = claude.gives_citations(model)
    if cites is not False:
        reader, held = Reader(results), list[Any]()
        try:
            for part in ask(_request(question, results), reader):
                if cites or isinstance(part, Waiting | Tokens):
                    yield part
                    continue
                held.append(part)
                if reader.cited:
                    claude.citing[model] = cites = True
                    yield from held
        except RefusedError:
            if cites:
                raise
    if not cites:
        yield from ask(_request(question, results, secrets.token_hex(8)), marks := MarkReader(results))
        if marks.cited > marks.dropped:
            claude.citing[model] = False


def ask_model(
    claude: Claude,
    model: str,
    request: Mapping[str, Any],
    reader: Reader,
    *,
    deadline: Deadline,
    buffered: bool,
    searching: bool = False,
) -> Generator[Any]:
    """Yield the parts of one reply, as `read_stream` reads them, and its tokens."""
    read = functools.partial(read_stream, reader=reader, buffered=buffered, searching=searching)
    try:
        yield from claude.stream("answers", model, request, read, deadline)
    except BudgetError:
        raise
    except TransientError as error:
        raise TransientError(f"{error} Ask again.", error.retry_after) from None


def _request(question: str, results: Sequence[Result], fence: str | None = None) -> dict[str, Any]:
    content = [*blocks_of(results, fence), {"type": "text", "text": question}]
    return request_of(SYSTEM_MARKS if fence else SYSTEM, [{"role": "user", "content": content}])


def blocks_of(results: Sequence[Result], fence: str | None, first: int = 1) -> list[dict[str, Any]]:
    """Passages as search results; with a fence as numbered text, between delimiters that no document can contain."""
    if not fence:
        return [result.block() for result in results]
    text = "\n".join(
        f"<passage-{fence} number={number} title={json.dumps(result.title, ensure_ascii=False)}>\n"
        f"{result.content.strip()}\n</passage-{fence}>\n"
        for number, result in enumerate(results, first)
    )
    return [{"type": "text", "text": text}] if text else []


def request_of(system: str, messages: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "max_tokens": MAX_TOKENS,
        "system": [{"type": "text", "text": system, "cache_control": {"type": "ephemeral"}}],
        "messages": messages,
    }
