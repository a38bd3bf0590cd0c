"""Answers in steps: a model that searches before it answers, against a stand-in for Anthropic's API."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from api.answering import steps as deep
from api.verification.citations import Draft, Statement
from shared.errors import TransientError
from shared.models import Passage, SearchResult, Step, Waiting
from shared.providers import claude as provider
from shared.providers.claude import Claude, Deadline
from shared.providers.meter import NOTHING, BudgetError, Meter, Purpose, Tokens
from tests.standins.providers import AnthropicStandin, Block, cite, question_of, search_results, text_block, tool_use

QUESTION = "Who owns the key of the boathouse?"


def passage(number: int, content: str, start: int = 0) -> Passage:
    return Passage(number, number, f"{number}.md", None, content, 1.0, None, (), start, start + len(content))


FIRST = passage(1, "The key lies behind the boathouse. It is Anna's.")
MORE = {
    "Anna": [passage(2, "Anna is the harbour master."), FIRST],
    "harbour": [passage(3, "The harbour master is Anna Frost.")],
}


@dataclass
class Asked:
    """The outcome of a question. `most`: the reserved tokens of each request."""

    parts: list[Any] = field(default_factory=list)
    most: list[Tokens] = field(default_factory=list)

    @property
    def passages(self) -> list[Passage]:
        return [FIRST, *(passage for step in self.steps for passage in step.passages)]

    @property
    def tokens(self) -> Tokens:
        return sum((part for part in self.parts if isinstance(part, Tokens)), NOTHING)

    @property
    def steps(self) -> list[Step]:
        return [part for part in self.parts if isinstance(part, Step)]

    @property
    def statements(self) -> list[Statement]:
        return [part for part in self.parts if isinstance(part, Statement)]


class Capped(Meter):
    """A meter that allows a number of requests and records their reservations."""

    def __init__(self, cap: int, most: list[Tokens]) -> None:
        super().__init__()
        self.cap, self.most = cap, most

    def reserve(self, purpose: Purpose, model: str, most: Tokens, seconds: float) -> None:
        if len(self.most) == self.cap:
            raise BudgetError("Today's cap is used up.", 60)
        assert (purpose, model) == ("answers", "m")
        self.most.append(most)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[AnthropicStandin]:
    monkeypatch.setattr(provider, "PAUSE", 0.01)
    with AnthropicStandin() as server:
        yield server


def explore(
    server: AnthropicStandin,
    *replies: Callable[[dict[str, Any]], list[Block]],
    native: bool = True,
    seconds: float = 10,
    cap: int = 99,
) -> Asked:
    """Answer a question with one reply per request; the last reply repeats. `cap`: requests that the budget allows."""
    number = iter(range(1000))
    server.reply = lambda request: replies[min(next(number), len(replies) - 1)](request)
    asked = Asked()
    claude = Claude("k", server.url, Capped(cap, asked.most))
    claude.citing["m"] = native

    def search(query: str) -> SearchResult:
        passages = next((tuple(found) for word, found in MORE.items() if word in query), ())
        return SearchResult(query, passages, warnings=("Slow.",))

    for part in deep.explore(claude, "m", QUESTION, [FIRST], search, Deadline.after(seconds)):
        asked.parts += [] if isinstance(part, Waiting) else [part]
    return asked


def look(*queries: Any, name: str = "search") -> Callable[[dict[str, Any]], list[Block]]:
    return lambda _: [tool_use(name, query=query) for query in queries]


def answer(request: dict[str, Any]) -> list[Block]:
    """Return an answer that cites the last passage found."""
    last = len(search_results(request)) - 1
    return [text_block("It is Anna Frost's.", [cite(request, last, 0)])]


def test_an_answer_can_cite_every_passage_found_by_searches(server: AnthropicStandin) -> None:
    server.thinking = True
    asked = explore(server, look("Anna's work"), look("Who is harbour master?"), answer)
    assert [(step.number, step.query, [p.source for p in step.passages]) for step in asked.steps] == [
        (1, "Anna's work", ["2.md"]),
        (2, "Who is harbour master?", ["3.md"]),
    ]
    assert [p.source for p in asked.passages] == ["1.md", "2.md", "3.md"]
    (statement,) = asked.statements
    assert [(claim.passage, claim.quote) for claim in statement.claims] == [(2, "The harbour master is Anna Frost.")]
    assert isinstance(asked.parts[-2], Draft)
    assert [step.warnings for step in asked.steps] == [("Slow.",)] * 2

    first, second, third = (one["body"] for one in server.requests)
    assert [tool["name"] for tool in first["tools"]] == ["search"]
    assert first["tool_choice"] == {"type": "auto"}
    assert question_of(first) == QUESTION
    assert [m["role"] for m in third["messages"]] == ["user", "assistant", "user", "assistant", "user"]
    assert [block["type"] for block in second["messages"][1]["content"]] == ["thinking", "tool_use"], (
        "thoughts go back as they came"
    )
    results = second["messages"][2]["content"]
    assert [block["type"] for block in results] == ["tool_result"]
    assert [block["source"] for block in results[0]["content"]] == ["2.md"], "what is known already is not sent again"
    marked = [b for m in third["messages"] for b in m["content"] if b.get("cache_control")]
    assert marked == [third["messages"][-1]["content"][-1]], "the conversation is kept up to its end"
    assert asked.tokens.output > 0
    assert len(asked.most) == 3
    assert asked.most[2].input > asked.most[0].input, "each request reserves what it may take"


def test_an_answer_without_a_search_is_accepted(server: AnthropicStandin) -> None:
    asked = explore(server, answer)
    assert asked.steps == []
    assert len(asked.statements) == 1
    assert len(server.requests) == 1


def test_text_beside_a_tool_call_is_not_part_of_the_answer(server: AnthropicStandin) -> None:
    asked = explore(
        server, lambda r: [text_block("It is Anna's, I think. ", [cite(r, 0, 1)]), *look("Anna")(r)], answer
    )
    assert [one.text for one in asked.statements] == ["It is Anna Frost's."]


def test_a_server_without_citations_gets_text_and_returns_marks(server: AnthropicStandin) -> None:
    server.plain = True
    asked = explore(
        server,
        look("Anna"),
        lambda _: [text_block('She is the harbour master. [2: "Anna is the harbour master."]')],
        native=False,
    )
    assert [(c.passage, c.quote) for c in asked.statements[0].claims] == [(1, "Anna is the harbour master.")]
    first, second = (one["body"] for one in server.requests)
    found = second["messages"][2]["content"][0]["content"][0]["text"]
    fence = first["messages"][0]["content"][0]["text"].split()[0]
    assert found.startswith(f"{fence} number=2 "), "numbers go on, between the same delimiters"


def test_the_number_of_searches_is_limited(server: AnthropicStandin) -> None:
    asked = explore(server, *[look(f"Anna {n}") for n in range(deep.SEARCHES)], answer)
    assert len(asked.steps) == deep.SEARCHES
    assert [one["body"]["tool_choice"]["type"] for one in server.requests] == ["auto"] * deep.SEARCHES + ["none"]
    assert len(asked.statements) == 1


def test_the_number_of_parallel_calls_is_limited(server: AnthropicStandin) -> None:
    asked = explore(server, look(*[f"Anna {n}" for n in range(50)]), answer)
    assert len(asked.steps) == deep.SEARCHES
    wrong = [block.get("is_error", False) for block in server.requests[1]["body"]["messages"][2]["content"]]
    assert wrong == [False] * deep.SEARCHES + [True] * (50 - deep.SEARCHES)


def test_a_model_that_does_not_stop_searching_gives_no_answer(server: AnthropicStandin) -> None:
    with pytest.raises(TransientError, match=r"stopped in the middle \(tool_use\)"):
        explore(server, look("Anna"))


def test_the_number_of_tokens_is_limited(server: AnthropicStandin) -> None:
    server.usage_times = deep.STEPS_TOKENS
    explore(server, look("Anna"), answer)
    assert [one["body"]["tool_choice"]["type"] for one in server.requests] == ["auto", "none"]


def test_the_time_is_limited(server: AnthropicStandin) -> None:
    def slow(request: dict[str, Any]) -> list[Block]:
        time.sleep(2.1)
        return look("Anna")(request)

    explore(server, slow, answer, seconds=3)
    assert [one["body"]["tool_choice"]["type"] for one in server.requests] == ["auto", "none"]


def test_the_budget_can_end_the_searches(server: AnthropicStandin) -> None:
    with pytest.raises(BudgetError):
        explore(server, look("Anna"), answer, cap=1)


@pytest.mark.parametrize(
    ("name", "query"), [("fetch", "https://example.com"), ("search", " "), ("search", 7), ("search", None)]
)
def test_only_the_search_tool_can_be_called(server: AnthropicStandin, name: str, query: Any) -> None:
    asked = explore(server, look(query, name=name), answer)
    assert asked.steps == []
    (result,) = server.requests[1]["body"]["messages"][2]["content"]
    assert result["is_error"]
    assert len(asked.statements) == 1


def test_calls_of_unknown_tools_are_counted_too(server: AnthropicStandin) -> None:
    with pytest.raises(TransientError):
        explore(server, look("https://example.com", name="fetch"))
    assert [one["body"]["tool_choice"]["type"] for one in server.requests].count("auto") == deep.SEARCHES


def test_a_query_is_truncated_to_the_maximum_length(server: AnthropicStandin) -> None:
    asked = explore(server, look("Anna\n" * 5000), answer)
    assert len(asked.steps[0].query) == deep.LONGEST_QUERY


def test_a_search_without_new_passages_is_reported(server: AnthropicStandin) -> None:
    asked = explore(server, look("something else"), answer)
    assert asked.steps[0].passages == ()
    assert server.requests[1]["body"]["messages"][2]["content"][0]["content"] == "Nothing that was not found before."
