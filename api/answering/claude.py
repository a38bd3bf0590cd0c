"""Answers by Claude: passages go as search results, sentences come back with the words that they are said to quote."""

import functools
import json
import secrets
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from api.answering.prompts import SYSTEM, SYSTEM_MARKS
from api.answering.reader import Calls, MarkReader, Part, Reader, Result, read_stream
from api.verification.citations import Draft
from shared.errors import TransientError
from shared.models import Passage
from shared.providers import claude
from shared.providers.claude import RefusedError
from shared.providers.meter import BudgetError, Call

MAX_TOKENS = 4096  # of an answer, and of what the model thinks before it


_cites: dict[tuple[str, str], bool] = {}  # (address, model) of other servers: whether citations of theirs came


def answer(
    question: str,
    passages: Sequence[Passage],
    usage: dict[str, int],
    *,
    api_key: str,
    model: str,
    base_url: str,
    seconds: float,
    whole: bool = True,
    call: Call | None = None,
) -> Generator[Part]:
    """Claude's answer from the passages: its statements one by one, last a Draft without statements that says what else there is.

    None: nothing new for a while. `whole`: no statement before the answer is through, so that one which breaks off can be tried
    again; else an error may follow statements. `usage` is filled with the tokens as they are reported, those of attempts that
    failed included, and `call` is billed each. `base_url`: empty for Anthropic's own. `seconds`: from now, for everything, retries and silence included.
    Closing the generator ends the call.
    TransientError: it did not come about in time; PermanentError: the request was refused and would be again.

    Other servers may know nothing of citations: one that gives none is asked for marks with quoted words instead.
    """
    results = [result for index, passage in enumerate(passages) if (result := Result(index, passage)).spans]
    if not results:
        yield Draft()
        return
    server = (base_url, model)
    ask = functools.partial(
        ask_model,
        usage=usage,
        whole=whole,
        model=model,
        api_key=api_key,
        base_url=base_url,
        deadline=time.monotonic() + seconds,
        seconds=seconds,
        call=call,
    )
    cites = True if is_anthropic(base_url) else _cites.get(server)
    if cites is not False:
        reader, held = Reader(results), list[Part]()
        try:
            for part in ask(_with_citations(question, results), reader):
                assert not isinstance(part, Calls)
                if cites or part is None:
                    yield part
                    continue
                held.append(part)
                if reader.cited:  # they came: it knows what they are
                    _cites[server] = cites = True
                    yield from held
        except RefusedError:
            if cites:
                raise
    if not cites:
        for part in ask(_with_marks(question, results), reader := MarkReader(results)):
            assert not isinstance(part, Calls)
            yield part
        if reader.cited > reader.dropped:
            _cites[server] = False


def is_anthropic(base_url: str) -> bool:
    host = urlsplit(base_url or claude.URL).hostname or ""
    return host == "anthropic.com" or host.endswith(".anthropic.com")


def ask_model(
    request: dict[str, Any],
    reader: "Reader",
    *,
    usage: dict[str, int],
    whole: bool,
    model: str,
    api_key: str,
    base_url: str,
    deadline: float,
    seconds: float,
    call: Call | None,
    searching: bool = False,
) -> Iterator[Part | Calls]:
    read = functools.partial(read_stream, reader=reader, usage=usage, whole=whole, searching=searching)
    parts: Iterator[Part | Calls] = claude.stream(
        request | {"model": model},
        read,
        api_key=api_key,
        base_url=base_url,
        deadline=deadline,
        seconds=seconds,
        call=call,
    )
    try:
        yield from parts
    except BudgetError:
        raise
    except TransientError as error:
        raise TransientError(f"{error} Ask again.", error.retry_after) from None


def _with_citations(question: str, results: Sequence["Result"]) -> dict[str, Any]:
    blocks = [result.block() for result in results]
    return request_of(SYSTEM, [{"role": "user", "content": [*blocks, {"type": "text", "text": question}]}])


def _with_marks(question: str, results: Sequence["Result"]) -> dict[str, Any]:
    text = {"type": "text", "text": fenced(results, secrets.token_hex(8))}
    return request_of(SYSTEM_MARKS, [{"role": "user", "content": [text, {"type": "text", "text": question}]}])


def fenced(results: Sequence["Result"], fence: str, first: int = 1) -> str:
    """The passages as text, between delimiters that nobody who wrote one of them could know."""
    return "\n".join(
        f"<passage-{fence} number={number} title={json.dumps(result.title, ensure_ascii=False)}>\n"
        f"{result.content.strip()}\n</passage-{fence}>\n"
        for number, result in enumerate(results, first)
    )


def request_of(system: str, talk: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "max_tokens": MAX_TOKENS,
        "system": [{"type": "text", "text": system, "cache_control": {"type": "ephemeral"}}],
        "messages": talk,
    }
