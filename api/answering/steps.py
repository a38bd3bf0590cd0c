"""Answer in steps: the model searches up to six times before it answers."""

import json
import secrets
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from api.answering.claude import MAX_TOKENS, _cites, ask_model, fenced, is_anthropic, request_of
from api.answering.prompts import STEPS, SYSTEM, SYSTEM_MARKS, TOOL
from api.answering.reader import Calls, MarkReader, Part, Reader, Result
from shared.models import Passage, Step
from shared.providers.meter import Call, Tokens
from shared.text.invisible import visible
from shared.text.tokens import estimate_tokens

SEARCHES = 6  # that a model may ask for before it answers

STEPS_TOKENS = 120_000  # of all calls for one question; then it answers from what it has

LONGEST_QUERY = 1_000  # characters


def explore(
    question: str,
    passages: list[Passage],
    search: Callable[[str], Sequence[Passage]],
    usage: dict[str, int],
    *,
    api_key: str,
    model: str,
    base_url: str,
    seconds: float,
    call: Callable[[Tokens, float], AbstractContextManager[Call]],
) -> Generator[Part | Step]:
    """As `answer`, but the model may search on, step by step, before it answers; what it finds is added to `passages`.

    `search`: the one tool that there is: a query → passages, of what the question may see. `call`: reserves what one request may
    take in so many seconds. Bounded by SEARCHES, STEPS_TOKENS and two thirds of the time: then it is asked to answer with what it
    has. Its statements come when it is clear that it does not search on; those of the last request at once. A server of which it is
    not known whether it cites is asked for marks.
    """
    deadline = time.monotonic() + seconds
    native = is_anthropic(base_url) or _cites.get((base_url, model)) is True
    results: list[Result] = []
    reader, fence = (Reader if native else MarkReader)(results), secrets.token_hex(8)
    taken: dict[str, int] = {}

    def shown(found: Sequence[Passage], first: int) -> list[dict[str, Any]]:
        fresh = [result for index, passage in enumerate(found, first) if (result := Result(index, passage)).spans]
        results.extend(fresh)
        if native:
            return [result.block() for result in fresh]
        return [{"type": "text", "text": fenced(fresh, fence, len(results) - len(fresh) + 1)}] if fresh else []

    talk = [{"role": "user", "content": [*shown(passages, 0), {"type": "text", "text": question}]}]
    steps = 0
    while True:
        left = deadline - time.monotonic()
        rounds = len(talk) // 2  # also those in which it called what there is not
        last = max(steps, rounds) >= SEARCHES or sum(taken.values()) >= STEPS_TOKENS or left < seconds / 3
        request = request_of((SYSTEM if native else SYSTEM_MARKS) + STEPS, _cached(talk)) | {
            "tools": [TOOL],
            "tool_choice": {"type": "none" if last else "auto"},
        }
        calls, spent = None, dict[str, int]()
        with call(Tokens(estimate_tokens(json.dumps(request, ensure_ascii=False)), MAX_TOKENS), max(left, 0.0)) as one:
            try:
                for part in ask_model(
                    request,
                    reader,
                    usage=spent,
                    whole=not last,
                    searching=not last,
                    model=model,
                    api_key=api_key,
                    base_url=base_url,
                    deadline=deadline,
                    seconds=seconds,
                    call=one,
                ):
                    if isinstance(part, Calls):
                        calls = part
                    else:
                        yield part
            finally:
                for counts in (usage, taken):
                    counts |= {name: counts.get(name, 0) + tokens for name, tokens in spent.items()}
        if calls is None:
            return
        said: list[dict[str, Any]] = []
        for number, name, given in calls.uses:
            query = given.get("query") if isinstance(given, dict) else None
            if name != TOOL["name"] or not isinstance(query, str) or not query.strip():
                said.append(_result_of(number, "There is only the tool search, and it takes a query.", wrong=True))
            elif steps >= SEARCHES:
                said.append(_result_of(number, "No more searches: answer from what there is.", wrong=True))
            else:
                steps += 1
                query = " ".join(visible(query).split())[:LONGEST_QUERY]
                fresh = [found for found in search(query) if not any(_holds(one, found) for one in passages)]
                blocks = shown(fresh, len(passages))
                passages.extend(fresh)
                yield Step(steps, query, tuple(fresh))
                said.append(_result_of(number, blocks or "Nothing that was not found before."))
        talk += [{"role": "assistant", "content": calls.content}, {"role": "user", "content": said}]


def _cached(talk: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation, to be kept by the API up to its end: the next request begins with it."""
    *before, last = talk[-1]["content"]
    return [*talk[:-1], talk[-1] | {"content": [*before, last | {"cache_control": {"type": "ephemeral"}}]}]


def _result_of(number: str, content: str | list[dict[str, Any]], wrong: bool = False) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": number, "content": content} | ({"is_error": True} if wrong else {})


def _holds(one: Passage, other: Passage) -> bool:
    return (
        one.document_id == other.document_id and one.char_start <= other.char_start and other.char_end <= one.char_end
    )
