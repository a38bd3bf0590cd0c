"""Answer in steps: the model searches up to six times before it answers."""

import json
import secrets
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from api.answering.claude import SYSTEM, SYSTEM_MARKS, ask_model, blocks_of, request_of
from api.answering.reader import Calls, MarkReader, Part, Reader, Result
from shared.models import Passage, SearchResult, Step
from shared.providers.claude import Claude, Deadline, prompt
from shared.providers.meter import NOTHING, Tokens
from shared.text.invisible import visible

SEARCHES = 6  # before the answer
STEPS_TOKENS = 120_000  # of all requests for one question; after that the model has to answer
LONGEST_QUERY = 1_000  # characters

STEPS = prompt(__file__, "steps.md")
TOOL = json.loads(prompt(__file__, "search_tool.json"))
Search = Callable[[str], SearchResult]


def explore(
    claude: Claude, model: str, question: str, passages: Sequence[Passage], search: Search, deadline: Deadline
) -> Generator[Part | Step | Tokens]:
    """Like `answer`, but the model may search before it answers. Yields a Step with the new passages of each search.

    `search`: the only tool. After SEARCHES, STEPS_TOKENS or two thirds of the time the model is asked to answer from
    the passages it has. Statements come when it is clear that the reply calls no tool; those of the last reply at once.
    A server that is not known to cite is asked for marks.
    """
    talk = _Talk(search, fence=None if claude.gives_citations(model) else secrets.token_hex(8))
    reader = (MarkReader if talk.fence else Reader)(talk.results)
    system = (SYSTEM_MARKS if talk.fence else SYSTEM) + STEPS
    talk.add("user", [*talk.blocks(passages), {"type": "text", "text": question}])
    taken = NOTHING
    while True:
        late = deadline.left() < deadline.seconds / 3
        last = max(talk.steps, talk.rounds) >= SEARCHES or taken.total >= STEPS_TOKENS or late
        tools = {"tools": [TOOL], "tool_choice": {"type": "none" if last else "auto"}}
        request = request_of(system, talk.cached()) | tools
        calls: Calls | None = None
        for part in ask_model(claude, model, request, reader, deadline=deadline, buffered=not last, searching=not last):
            if isinstance(part, Calls):
                calls = part
                continue
            if isinstance(part, Tokens):
                taken += part
            yield part
        if calls is None:
            return
        yield from talk.search_for(calls)


@dataclass
class _Talk:
    """The conversation with the model. `results`: the passages that it has seen; `fence`: None if the model cites."""

    search: Search
    fence: str | None
    results: list[Result] = field(default_factory=list)
    passages: list[Passage] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 0

    @property
    def rounds(self) -> int:
        """Replies with tool calls, also with calls of tools that do not exist."""
        return len(self.messages) // 2

    def add(self, role: str, content: list[dict[str, Any]]) -> None:
        self.messages.append({"role": role, "content": content})

    def cached(self) -> list[dict[str, Any]]:
        """The messages, with their end marked for the cache: the next request begins with them."""
        *before, last = self.messages[-1]["content"]
        marked = last | {"cache_control": {"type": "ephemeral"}}
        return [*self.messages[:-1], self.messages[-1] | {"content": [*before, marked]}]

    def blocks(self, passages: Sequence[Passage]) -> list[dict[str, Any]]:
        """Add passages to those that the model has seen, and convert them to blocks."""
        first = len(self.passages)
        self.passages += passages
        fresh = [result for index, passage in enumerate(passages, first) if (result := Result(index, passage)).spans]
        self.results += fresh
        return blocks_of(fresh, self.fence, len(self.results) - len(fresh) + 1)

    def search_for(self, calls: Calls) -> Generator[Step]:
        """Carry out the calls of a reply, and add their results to the conversation."""
        content: list[dict[str, Any]] = []
        for call, name, arguments in calls.uses:
            query = arguments.get("query") if isinstance(arguments, dict) else None
            if name != TOOL["name"] or not isinstance(query, str) or not query.strip():
                content.append(_result_of(call, "There is only the tool search, and it takes a query.", wrong=True))
            elif self.steps >= SEARCHES:
                content.append(_result_of(call, "No more searches: answer from what there is.", wrong=True))
            else:
                self.steps += 1
                query = " ".join(visible(query).split())[:LONGEST_QUERY]
                found = self.search(query)
                fresh = [new for new in found.passages if not any(_contains(old, new) for old in self.passages)]
                blocks = self.blocks(fresh)
                yield Step(self.steps, query, tuple(fresh), found.warnings)
                content.append(_result_of(call, blocks or "Nothing that was not found before."))
        self.add("assistant", calls.content)
        self.add("user", content)


def _result_of(call: str, content: str | list[dict[str, Any]], wrong: bool = False) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": call, "content": content} | ({"is_error": True} if wrong else {})


def _contains(passage: Passage, other: Passage) -> bool:
    return (
        passage.document_id == other.document_id
        and passage.char_start <= other.char_start
        and other.char_end <= passage.char_end
    )
