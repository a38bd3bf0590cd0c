"""Answers by Claude: requests, true and forged citations, and errors, against a stand-in for Anthropic's API."""

import json
import random
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from api.answering import claude
from api.verification.citations import Draft, Statement
from api.verification.second_opinion import SecondOpinion
from shared.errors import PermanentError, TransientError
from shared.models import NO_ANSWER, Passage
from shared.providers import claude as provider
from shared.providers.claude import USES, Claude, Deadline
from shared.providers.meter import NOTHING, Tokens
from tests.conftest import hang_guard, until
from tests.standins.providers import AnthropicStandin, cite, search_results, text_block

KEY = "sk-ant-the-secret-key"
TOWER = "# The tower\n\nIt is 54 m high.  It was built in 1887 by Ada Frost.\n\n- Ducks nest on its roof.\n"
POND = "The pond 🦆 holds 1.5 million litres. Nobody may swim in it!"
OFFSET = 1000  # start of the pond's passage in its document


def passage(content: str, source: str, start: int = 0) -> Passage:
    return Passage(1, 1, source, None, content, 1.0, None, (), start, start + len(content))


PASSAGES = [
    Passage(1, 1, "tower.md", "Tower", TOWER, 1.0, 3, ("Sights",), 0, len(TOWER)),
    passage(" \n ", "blank.txt"),
    passage(POND, "pond.txt", OFFSET),
]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[AnthropicStandin]:
    monkeypatch.setattr(provider, "PAUSE", 0.01)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # loopback calls must not use this proxy
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with AnthropicStandin() as server:
        yield server


def connect(server: AnthropicStandin, key: str = KEY, citing: dict[str, bool] | None = None) -> Claude:
    """Return a Claude client of a server. `citing` maps a model to True or False: known to cite or not."""
    opened = Claude(key, server.url)
    opened.citing.update(citing or {})
    return opened


def ask(
    server: AnthropicStandin | Claude,
    seconds: float = 10,
    question: str = "How high is it?",
    model: str = "m",
    native: bool = True,
    passages: list[Passage] = PASSAGES,
) -> Draft:
    """Return the complete answer with its usage. `native`: True if the server is known to cite."""
    opened = server if isinstance(server, Claude) else connect(server, citing={model: native})
    parts = list(claude.answer(opened, model, question, passages, Deadline.after(seconds)))
    (rest,) = (part for part in parts if isinstance(part, Draft))
    assert not rest.statements
    assert not [part for part in parts[parts.index(rest) :] if isinstance(part, Statement)]
    tokens = sum((part for part in parts if isinstance(part, Tokens)), NOTHING)
    return replace(
        rest,
        statements=tuple(part for part in parts if isinstance(part, Statement)),
        usage=tokens.by_name() if tokens.total else {},
    )


def replies(server: AnthropicStandin, *texts: str, **citation: Any) -> Draft:
    """Draft an answer whose last text cites the second block of the first result, with the given changes."""

    def reply(request: dict[str, Any]) -> list[dict[str, Any]]:
        cited = cite(request, 0, 1) | citation
        return [*(text_block(text) for text in texts[:-1]), text_block(texts[-1], [cited])]

    server.reply = reply
    return ask(server)


def quoted(draft: Draft) -> list[tuple[str, list[str]]]:
    return [(one.text, [claim.quote for claim in one.claims]) for one in draft.statements]


# Requests


def test_the_request(server: AnthropicStandin) -> None:
    ask(server, question="How high is the tower?", model="claude-sonnet-5-5")
    (request,) = server.requests
    body = request["body"]
    assert body["model"] == "claude-sonnet-5-5"
    assert body["stream"] is True
    assert 0 < body["max_tokens"] <= 8192
    assert body["output_config"] == {"effort": "low"}
    assert not body.keys() & {"temperature", "top_p", "top_k", "thinking", "tool_choice"}
    (system,) = body["system"]
    assert system["cache_control"] == {"type": "ephemeral"}
    assert NO_ANSWER in system["text"]
    (message,) = body["messages"]
    assert message["content"][-1] == {"type": "text", "text": "How high is the tower?"}
    tower, pond = search_results(body)
    assert (tower["source"], tower["title"]) == ("tower.md", "Tower › Sights")
    assert (pond["source"], pond["title"]) == ("pond.txt", "pond.txt")
    assert [block["text"] for block in tower["content"]] == [
        "# The tower\n\n",
        "It is 54 m high.  ",
        "It was built in 1887 by Ada Frost.\n\n",
        "- Ducks nest on its roof.\n",
    ]
    assert all(result["citations"] == {"enabled": True} for result in (tower, pond))
    assert request["headers"]["authorization"] == f"Bearer {KEY}" or request["headers"]["x-api-key"] == KEY


def test_without_passages_no_request_is_sent(server: AnthropicStandin) -> None:
    assert ask(server, passages=PASSAGES[1:2]) == Draft()
    assert not server.requests


def test_effort_is_omitted_for_a_model_that_does_not_support_it(server: AnthropicStandin) -> None:
    server.misbehave("400", message="This model does not support the effort parameter.")
    opened = connect(server, citing={"claude-old": True})
    for _ in range(2):
        assert ask(opened, model="claude-old").statements
    assert ["output_config" in request["body"] for request in server.requests] == [True, False, False]


@pytest.mark.parametrize("model", ["claude-sonnet-5-5", "claude-sonnet-4-6", "claude-haiku-5-5", "claude-opus-5-5"])
def test_every_model_gets_the_parameters_that_it_accepts(server: AnthropicStandin, model: str) -> None:
    server.thinking = True  # these models think first by default
    assert ask(server, model=model, question="How high is the tower?").statements
    (request,) = server.requests  # no parameter was refused
    assert request["body"]["model"] == model
    assert request["body"].keys() == {"model", "max_tokens", "system", "messages", "output_config", "stream"}


# Servers that do not cite


def marked(server: AnthropicStandin, text: str) -> Draft:
    server.reply, server.plain = lambda request: [text_block(text)], True
    return ask(server, native=False)


def test_the_request_for_citation_marks(server: AnthropicStandin) -> None:
    marked(server, NO_ANSWER)
    marked(server, NO_ANSWER)
    one, other = (request["body"] for request in server.requests)
    assert not search_results(one)
    passages, question = (block["text"] for block in one["messages"][0]["content"])
    assert POND in passages
    assert question == "How high is it?"
    fence = re.search(r"<passage-(\w+) number=1 ", passages)
    assert fence
    assert fence[1] not in other["messages"][0]["content"][0]["text"]  # no document can contain this random fence
    assert '[2: "' in one["system"][0]["text"]


@pytest.mark.parametrize(
    ("text", "expected", "dropped"),
    [
        ('It is 54 m high. [1: "It is 54 m high."]', [("It is 54 m high.", ["It is 54 m high."])], 0),
        ('It is 54 m high [1: "54 m high"]. So it is.', [("It is 54 m high. ", ["54 m high"]), ("So it is.", [])], 0),
        ('Both. [1: "54 m"] [2: “1.5 million  litres.”]', [("Both.", ["54 m", "1.5 million litres."])], 0),
        ('Never. [1: "54 m"] Yes. [2: "Nobody may swim"]', [("Never. ", ["54 m"]), ("Yes.", ["Nobody may swim"])], 0),
        ('First. Second. [1: "54 m"]', [("First. ", []), ("Second.", ["54 m"])], 0),
        ('Forged. [1: "It is 55 m high."]', [("Forged.", [])], 1),
        ('Elsewhere. [2: "It is 54 m high."] [7: "54 m"] [0: "54 m"]', [("Elsewhere.", [])], 3),
        ("Bare. [1] [1, 2]", [("Bare.", [])], 2),
        ('- One [1: "54 m"]\n- Two [1: "1887"]\n', [("- One\n", ["54 m"]), ("- Two\n", ["1887"])], 0),
        ('Broken. [1: "It is 54 m', [("Broken. ", []), ('[1: "It is 54 m', [])], 0),
        ("argv[1] is it.", [("argv[1] is it.", [])], 0),
    ],
)
def test_citation_marks_are_read(
    server: AnthropicStandin, text: str, expected: list[tuple[str, list[str]]], dropped: int
) -> None:
    draft = marked(server, text)
    assert (quoted(draft), draft.dropped) == (expected, dropped)


def test_native_citation_support_is_detected(server: AnthropicStandin) -> None:
    server.plain = True
    server.reply = lambda request: [text_block("No." if search_results(request) else '54 m. [1: "54 m"]')]
    marks, cites = connect(server), connect(server)
    assert quoted(ask(marks)) == [("54 m.", ["54 m"])]
    assert len(server.requests) == 2
    assert marks.gives_citations("m") is False
    server.plain, server.reply = False, lambda request: [text_block("54 m.", [cite(request, 0, 1)])]
    assert cites.gives_citations("m") is None
    assert quoted(ask(cites)) == [("54 m.", ["It is 54 m high."])]
    assert cites.gives_citations("m") is True
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("url", "cites"),
    [
        ("", True),
        ("https://eu.anthropic.com", True),
        ("https://anthropic.com.evil.com", None),
        ("http://1.2.3.4", None),
    ],
)
def test_citation_support_is_known_for_the_server_of_anthropic(url: str, cites: bool | None) -> None:
    assert Claude(KEY, url).gives_citations("m") is cites


def test_marks_are_used_if_a_server_refuses_search_results(server: AnthropicStandin) -> None:
    server.misbehave("400", message="unknown content block type search_result")
    server.reply = lambda request: [text_block('54 m. [1: "54 m"]')]
    assert quoted(ask(connect(server))) == [("54 m.", ["54 m"])]


# Invisible text


HIDDEN = "It is\u200b 54 m\U000e0041\U000e0042 high. \U000e0043\n\n\u202eIt was built in 1887."
CLEAN = "It is 54 m high. \n\nIt was built in 1887."


@pytest.mark.parametrize("native", [True, False])
def test_invisible_text_is_not_sent(server: AnthropicStandin, native: bool) -> None:
    """Invisible text cannot be cited either; a quote of the text around it includes it as stored."""
    marked = text_block('It is 54 m high. [1: "It is 54 m high."]')
    server.reply = lambda request: [text_block("It is 54 m high.", [cite(request, 0, 0)]) if native else marked]
    hidden = Passage(1, 1, "a\u202e.md", "T\U000e0041", HIDDEN, 1.0, None, ("H\u200b",), 0, len(HIDDEN))
    draft = ask(server, native=native, passages=[replace(hidden, char_start=7), passage("\u200b\U000e0041", "b.md")])
    (statement,) = draft.statements
    (claim,) = statement.claims
    assert (
        claim.quote == HIDDEN[claim.char_start - 7 : claim.char_end - 7] == "It is\u200b 54 m\U000e0041\U000e0042 high."
    )
    body = server.requests[-1]["body"]
    assert not re.search("[\u200b\u202e\U000e0000-\U000e007f]", json.dumps(body, ensure_ascii=False))
    if native:
        (result,) = search_results(body)
        assert "".join(block["text"] for block in result["content"]) == CLEAN
        assert (result["source"], result["title"]) == ("a.md", "T › H")


# The judge


@pytest.mark.parametrize(("reply", "opinion"), [("yes", True), ("No.", False), ("Perhaps", None), ("", None)])
def test_a_judge_answers_yes_or_no_or_has_no_opinion(
    server: AnthropicStandin, reply: str, opinion: bool | None
) -> None:
    server.reply = lambda request: [text_block(reply)] if reply else []
    judge = SecondOpinion(connect(server), "claude-haiku-5-5", Deadline.after(5))
    assert judge("It is high.", ['"quoted"']) is opinion
    assert json.loads(server.requests[0]["body"]["messages"][0]["content"]) == {
        "quotes": ['"quoted"'],
        "sentence": "It is high.",
    }
    assert judge.usage["check_input_tokens"] > 0
    server.misbehave("hang", seconds=1)
    late = SecondOpinion(connect(server), "claude-haiku-5-5", Deadline.after(0.2))
    assert late("It is high.", ["q"]) is None
    assert not late.usage


# Replies


def test_block_citations_are_converted_to_character_offsets(server: AnthropicStandin) -> None:
    server.thinking = True
    server.reply = lambda request: [
        text_block("The tower is 54 m high", [cite(request, 0, 1)]),
        text_block(", and Ada Frost built it in 1887.\n\n", [cite(request, 0, 2)]),
        text_block(
            "- The pond holds 1.5 million litres. Nobody swims.\n", [cite(request, 1, 0, 2), cite(request, 1, 1)]
        ),
        text_block("That is all."),
    ]
    draft = ask(server)
    assert quoted(draft) == [
        (
            "The tower is 54 m high, and Ada Frost built it in 1887.\n\n",
            ["It is 54 m high.", "It was built in 1887 by Ada Frost."],
        ),
        ("- The pond holds 1.5 million litres. ", [POND, "Nobody may swim in it!"]),
        ("Nobody swims.\n", [POND, "Nobody may swim in it!"]),
        ("That is all.", []),
    ]
    assert (draft.dropped, draft.warnings) == (0, ())
    for statement in draft.statements:
        for claim in statement.claims:
            origin = PASSAGES[claim.passage]
            start = claim.char_start - origin.char_start
            assert origin.content[start : claim.char_end - origin.char_start] == claim.quote
    assert draft.statements[1].claims[0].passage == 2  # the blank passage was not sent and is not counted
    assert draft.statements[1].claims[0].char_start == OFFSET
    assert draft.usage["input_tokens"] > 0
    assert draft.usage["output_tokens"] > 0
    assert draft.usage.keys() == {
        "input_tokens",
        "output_tokens",
        "cache_creation_input_tokens",
        "cache_read_input_tokens",
    }


def test_citations_may_arrive_before_their_text(server: AnthropicStandin) -> None:
    server.citations_first = True
    assert quoted(replies(server, "54 m.")) == [("54 m.", ["It is 54 m high."])]


@pytest.mark.parametrize(
    "forged",
    [
        {"search_result_index": 1},
        {"search_result_index": 2},
        {"search_result_index": -1},
        {"search_result_index": "first"},
        {"search_result_index": None},
        {"start_block_index": 0},
        {"start_block_index": -3, "end_block_index": -2},
        {"start_block_index": 2, "end_block_index": 2},
        {"start_block_index": 2, "end_block_index": 1},
        {"end_block_index": 3},
        {"end_block_index": 5},
        {"start_block_index": 4, "end_block_index": 5},
        {"cited_text": ""},
        {"cited_text": "It is 55 m high."},
        {"cited_text": "It is not 54 m high."},
        {"cited_text": "it is 54 m high."},
        {"cited_text": "It is 54m high."},
        {"cited_text": None},
        {"type": "char_location", "start_char_index": 0, "end_char_index": 5, "document_index": 0, "cited_text": "x"},
    ],
)
def test_forged_citations_are_dropped(server: AnthropicStandin, forged: dict[str, Any]) -> None:
    draft = replies(server, "It is 54 m high.", **forged)
    assert quoted(draft) == [("It is 54 m high.", [])]
    assert draft.dropped == 1


def test_every_single_change_of_a_cited_text_is_noticed(server: AnthropicStandin) -> None:
    rng = random.Random(3)
    true = "It was built in 1887 by Ada Frost."

    def altered() -> str:
        place = rng.randrange(len(true))
        letter = rng.choice([c for c in "abcxyzAFI0189.,-" if c != true[place]])
        return rng.choice([true[:place] + letter + true[place + 1 :], true[:place] + letter + true[place:]])

    texts = [altered() for _ in range(200)]
    server.reply = lambda request: [
        text_block(f"Claim {n}. ", [cite(request, 0, 2) | {"cited_text": text}]) for n, text in enumerate(texts)
    ]
    draft = ask(server)
    assert draft.dropped == 200
    assert not any(statement.claims for statement in draft.statements)


@pytest.mark.parametrize("text", [NO_ANSWER, f"\n {NO_ANSWER} \n", NO_ANSWER.replace("'", "’"), "", " \n"])
def test_a_missing_answer_gives_an_empty_draft(server: AnthropicStandin, text: str) -> None:
    server.reply = lambda request: [text_block(text)] if text else []
    assert replace(ask(server), usage={}) == Draft(cut=bool(text.strip()))


def test_a_code_block_is_one_statement(server: AnthropicStandin) -> None:
    text = "Run this:\n```sh\nmake up\nmake test\n```\n---\nThen wait.\n"
    assert [text for text, _ in quoted(replies(server, text))] == [
        "Run this:\n```sh\nmake up\nmake test\n```\n---\n",
        "Then wait.\n",
    ]


def test_a_refusal_gives_a_warning_and_no_statements(server: AnthropicStandin) -> None:
    server.stop_reason = "refusal"
    draft = replies(server, "I will not.")
    assert not draft.statements
    assert "declined" in draft.warnings[0]


@pytest.mark.parametrize("reason", ["max_tokens", "model_context_window_exceeded"])
def test_a_truncated_answer_is_reported(server: AnthropicStandin, reason: str) -> None:
    server.stop_reason = reason
    draft = replies(server, "It is 54 m high. And it was bui")
    assert quoted(draft) == [("It is 54 m high. ", ["It is 54 m high."])]
    assert "too long" in draft.warnings[0]


# Errors


@pytest.mark.parametrize("fault", ["429", "500", "529", "cut", "error_event", "cut_stream", "broken_stream"])
def test_temporary_errors_are_retried(server: AnthropicStandin, fault: str) -> None:
    server.misbehave(fault, times=2)
    assert quoted(replies(server, "54 m.")) == [("54 m.", ["It is 54 m high."])]
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("429", "rate limit"),
        ("500", "HTTP 500"),
        ("529", "overloaded"),
        ("error_event", "overloaded"),
        ("cut", "connection"),
        ("malformed", "ended early"),
        ("cut_stream", "ended early"),
        ("broken_stream", "was lost"),
    ],
)
def test_a_lasting_temporary_error_is_raised(server: AnthropicStandin, fault: str, error: str) -> None:
    server.misbehave(fault, times=None)
    with pytest.raises(TransientError, match=error):
        ask(server)
    assert len(server.requests) == USES["answers"].attempts


def test_the_client_waits_for_retry_after(server: AnthropicStandin) -> None:
    server.misbehave("429", retry_after=0.4)
    assert ask(server).statements
    first, second = (request["time"] for request in server.requests)
    assert second - first >= 0.4


def test_a_pause_beyond_the_deadline_is_refused_at_once(server: AnthropicStandin) -> None:
    server.misbehave("429", retry_after=900)
    with hang_guard(60), pytest.raises(TransientError) as caught:
        ask(server, seconds=600)
    assert caught.value.retry_after == 900
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("fault", "error"), [("401", "ANTHROPIC_API_KEY"), ("404", "ANTHROPIC_MODEL"), ("400", "too long")]
)
def test_permanent_errors_are_not_retried(server: AnthropicStandin, fault: str, error: str) -> None:
    server.misbehave(fault, times=None, message=f"prompt is too long, said the bearer of {KEY}")
    with pytest.raises(PermanentError, match=error) as caught:
        ask(server)
    assert KEY not in str(caught.value)
    assert caught.value.__cause__ is None
    assert len(server.requests) == 1


def test_a_hanging_server_causes_a_timeout(server: AnthropicStandin) -> None:
    server.misbehave("hang", times=None)
    started = time.monotonic()
    with pytest.raises(TransientError, match=r"within 0.5 s.*ASKFOLDER_ASK_SECONDS"):
        ask(server, seconds=0.5)
    assert time.monotonic() - started > 0.4
    assert server.in_flight == 1, "the server has not answered yet"


class Dripping(AnthropicStandin):
    """A server that begins to answer and then sends only pings; no single read takes long."""

    def stream(self, handler: Any, message: dict[str, Any], fault: str) -> None:
        self.left = threading.Event()
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream")
        handler.send_header("transfer-encoding", "chunked")
        handler.end_headers()
        try:
            for event in list(self.events(message, False))[:4]:
                self.send_event(handler, event)
            while not self.closing.wait(0.02):
                self.send_event(handler, {"type": "ping"})
        except OSError:
            handler.close_connection = True
            self.left.set()


def test_a_stalled_stream_causes_a_timeout() -> None:
    with Dripping() as server:
        started = time.monotonic()
        with hang_guard(60), pytest.raises(TransientError, match="within"):
            ask(server, seconds=0.5)
        assert time.monotonic() - started > 0.4
        assert server.left.wait(30), "the call was ended, not left to itself"


def test_an_unreachable_server_is_an_error() -> None:
    with AnthropicStandin() as server:
        pass
    with pytest.raises(TransientError, match="ANTHROPIC_BASE_URL"):
        ask(server, seconds=1)


def test_an_invalid_key_is_refused(server: AnthropicStandin) -> None:
    for key in ("sk-ant-ünicode", "two words", "line\nbreak"):
        with pytest.raises(PermanentError, match="ANTHROPIC_API_KEY") as caught:
            ask(connect(server, key))
        assert key not in str(caught.value)


def test_answers_leave_no_threads_behind(server: AnthropicStandin) -> None:
    ask(server)
    server.misbehave("hang", seconds=0.3)
    with pytest.raises(TransientError):
        ask(server, seconds=0.1)

    until(lambda: "claude" not in {thread.name for thread in threading.enumerate()})
