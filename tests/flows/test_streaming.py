"""Streamed answers over HTTP from a real server: order of events, disconnected clients, failing servers."""

import contextlib
import json
import os
import pty
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from shared.client import Client
from shared.errors import AskfolderError
from shared.models import NO_ANSWER
from shared.settings import ROOT
from shared.system.servers import Servers
from tests.conftest import KEY, System, new_database, new_system, until
from tests.flows.test_questions import FILES
from tests.standins.providers import AnthropicStandin, cite, search_results, text_block, tool_use

QUESTION = "Where is the key of the boathouse?"
Events = list[tuple[str, Any]]


@pytest.fixture(scope="module")
def standin() -> Iterator[AnthropicStandin]:
    with AnthropicStandin() as standin:
        yield standin


@contextlib.contextmanager
def answering(servers: Servers, model: Path, work: Path, standin: AnthropicStandin, **more: str) -> Iterator[System]:
    """Run an API over two documents and `more` (file → text), with answers by the stand-in."""
    with new_database(servers) as url:
        system = new_system(servers, url, model, work)
        for name in ("boathouse.md", "telescope.rst"):
            shutil.copy(FILES / name, system.folder)
        for name, text in more.items():
            (system.folder / name).write_text(text)
        system.env |= {"ANTHROPIC_API_KEY": "sk-ant-test", "ANTHROPIC_BASE_URL": standin.url}
        try:
            system.start("web", "worker", "producer")
            system.settled(2 + len(more))
            system.stop("worker", "producer")
            yield system
        finally:
            system.stop()


@pytest.fixture(scope="module")
def system(
    servers: Servers, model: Path, tmp_path_factory: pytest.TempPathFactory, standin: AnthropicStandin
) -> Iterator[System]:
    with answering(servers, model, tmp_path_factory.mktemp("streaming"), standin) as system:
        yield system


@contextlib.contextmanager
def restarted(system: System, **env: str) -> Iterator[None]:
    """Restart the API with other settings inside the block."""
    system.stop("web")
    system.start("web", **env)
    try:
        yield
    finally:
        system.stop("web")
        system.start("web")


@pytest.fixture(autouse=True)
def fresh(standin: AnthropicStandin) -> None:
    standin.behave()
    standin.reply = three
    standin.stop_reason, standin.pace, standin.spoil_after, standin.plain = "end_turn", 0.0, 2, False
    standin.left.clear()
    standin.requests.clear()


def three(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Return two supported sentences, with a sentence between them whose quote is forged."""
    blocks = [(n, i) for n, one in enumerate(search_results(request)) for i in range(len(one["content"]))]
    texts = {place: search_results(request)[place[0]]["content"][place[1]]["text"] for place in blocks}
    good = [place for place in blocks if len(texts[place]) > 40 and not texts[place].startswith("#")][:2]
    first, second = (text_block(texts[place].strip() + " ", [cite(request, *place)]) for place in good)
    forged = cite(request, *good[0]) | {"cited_text": "The key is at the harbour master's."}
    return [first, text_block("The key is at the harbour master's. ", [forged]), second]


@contextlib.contextmanager
def opened(system: System, **body: Any) -> Iterator[httpx2.Response]:
    with (
        httpx2.Client(trust_env=False, timeout=20) as client,
        client.stream(
            "POST",
            f"http://127.0.0.1:{system.port}/ask",
            json={"question": QUESTION, **body},
            headers={"Authorization": f"Bearer {KEY}", "Accept": "text/event-stream"},
        ) as response,
    ):
        yield response


def read(response: httpx2.Response) -> Iterator[tuple[str, Any, float]]:
    """Yield (name, data, time of arrival) of each event; heartbeats have the name ""."""
    buffer = ""
    for text in response.iter_text():
        buffer += text
        while "\n\n" in buffer:
            event, buffer = buffer.split("\n\n", 1)
            lines = dict(line.split(": ", 1) for line in event.split("\n") if ": " in line)
            yield lines.get("event", ""), json.loads(lines["data"]) if "data" in lines else None, time.monotonic()


def streamed(system: System, **body: Any) -> Events:
    with opened(system, **body) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        return [(name, data) for name, data, _ in read(response) if name]


def test_passages_arrive_before_sentences_and_the_answer(system: System, standin: AnthropicStandin) -> None:
    events = streamed(system)
    assert [name for name, _ in events] == ["passages", "citation", "delta", "citation", "delta", "done"]
    assert events[0][1]["passages"]
    assert "retrieve_ms" in events[0][1]["timings"]
    done = events[-1][1]
    deltas = [data for name, data in events if name == "delta"]
    assert "".join(delta["text"] for delta in deltas).strip() == done["answer"]
    assert [(delta["status"], delta["citations"]) for delta in deltas] == [("supported", [1]), ("supported", [2])]
    assert deltas == done["sentences"]
    assert [data for name, data in events if name == "citation"] == done["citations"]
    assert (done["verdict"], done["dropped"], done["removed"]) == ("partial", 1, 1)
    assert "harbour" not in json.dumps(events[1:])
    assert done["usage"]["output_tokens"] > 0
    assert done["timings"].keys() >= {"retrieve_ms", "answer_ms", "verify_ms"}
    complete = system.call("POST", "/ask", {"question": QUESTION})
    assert {key: complete[key] for key in ("answer", "sentences", "citations", "verdict", "dropped", "removed")} == {
        key: done[key] for key in ("answer", "sentences", "citations", "verdict", "dropped", "removed")
    }


def searches(query: str) -> Any:
    """Return a model that searches once, then answers with the first sentence that contains the query's last word."""

    def reply(request: dict[str, Any]) -> list[dict[str, Any]]:
        if len(request["messages"]) == 1:
            return [tool_use("search", query=query)]
        for number, result in enumerate(search_results(request)):
            for place, block in enumerate(result["content"]):
                if query.split()[-1] in block["text"]:
                    return [text_block(block["text"].strip(), [cite(request, number, place)])]
        return [text_block(NO_ANSWER)]

    return reply


def test_a_model_can_search_before_its_answer(system: System, standin: AnthropicStandin) -> None:
    streamed(system)  # after this request the server is known to cite
    standin.reply = searches("focal length of the mirror")
    events = streamed(system, mode="deep", top_k=1)
    assert [name for name, _ in events] == ["passages", "step", "citation", "delta", "done"]
    step, done = events[1][1], events[-1][1]
    assert (step["number"], step["query"]) == (1, "focal length of the mirror")
    assert [passage["source"] for passage in step["passages"]] == ["telescope.rst"]
    assert events[0][1]["passages"][0]["source"] == "boathouse.md"
    assert done["citations"][0]["source"] == "telescope.rst"
    assert done["steps"] == [{"number": 1, "query": "focal length of the mirror", "found": 1}]
    assert done["verdict"] == "grounded"
    complete = system.call("POST", "/ask", {"question": QUESTION, "mode": "deep", "top_k": 1})
    assert [passage["source"] for passage in complete["passages"]] == ["boathouse.md", "telescope.rst"]
    standin.requests.clear()
    streamed(system)
    assert "tools" not in standin.requests[0]["body"], "otherwise it may not"


def test_searches_of_the_model_keep_the_filters_of_the_question(system: System, standin: AnthropicStandin) -> None:
    streamed(system)  # after this request the server is known to cite
    standin.reply = searches("focal length of the mirror")
    events = streamed(system, mode="deep", filters={"source": "boathouse.md"})
    assert events[1][0] == "step"
    assert "telescope" not in json.dumps(events)
    assert "telescope" not in json.dumps(standin.requests[-1]["body"]["messages"][0])
    assert events[-1][1]["verdict"] == "no_answer"


def test_mode_deep_without_a_model_is_refused(system: System) -> None:
    with restarted(system, ASKFOLDER_ANSWERER="extractive"), httpx2.Client(trust_env=False) as client:
        response = client.post(
            f"http://127.0.0.1:{system.port}/ask",
            json={"question": QUESTION, "mode": "deep"},
            headers={"Authorization": f"Bearer {KEY}"},
        )
        assert (response.status_code, response.json()["title"]) == (409, "No model")


def test_a_cap_reached_between_two_searches(system: System, standin: AnthropicStandin) -> None:
    streamed(system)  # after this request the server is known to cite
    standin.reply = searches("focal length of the mirror")
    standin.usage_times = 1000
    with restarted(system, ASKFOLDER_BUDGET_ANSWERS="0.3"):
        events = streamed(system, mode="deep")
    standin.usage_times = 1
    assert [name for name, _ in events][:2] == ["passages", "step"]
    done = events[-1][1]
    assert done["answerer"] == "extractive"
    assert "third oar" in done["answer"]
    assert "ASKFOLDER_BUDGET_ANSWERS" in " ".join(done["warnings"])


HISTORY = [{"question": "When does the boathouse open in summer?", "answer": "It opens at 6:30. [1]"}]


def test_a_follow_up_is_rewritten_once(system: System, standin: AnthropicStandin) -> None:
    def reply(request: dict[str, Any]) -> list[dict[str, Any]]:
        return (
            [text_block("When does the boathouse open in winter?")]
            if "stand alone" in str(request["system"])
            else three(request)
        )

    standin.reply = reply
    events = streamed(system, question="And in winter?", history=HISTORY)
    assert events[0][1]["question"] == events[-1][1]["question"] == "When does the boathouse open in winter?"
    assert "8:00" in json.dumps(events[0][1]["passages"])
    assert "rewrite_ms" in events[0][1]["timings"]
    assert len(standin.requests) == 2
    assert "When does the boathouse open in winter?" in json.dumps(standin.requests[1]["body"]["messages"])
    streamed(system, question="And in winter?", history=HISTORY)
    assert len(standin.requests) == 3, "what it became is remembered"
    streamed(system, question="What is the focal length of the telescope's main mirror?", history=HISTORY)
    assert len(standin.requests) == 4, "it stands alone"
    purposes = {row["purpose"] for row in until(lambda: system.call("GET", "/usage")["days"])}
    assert "rewriting" in purposes


def test_a_follow_up_without_a_model(system: System) -> None:
    with restarted(system, ASKFOLDER_ANSWERER="extractive"):
        done = streamed(system, question="And in winter?", history=HISTORY)[-1][1]
        assert done["question"] == "When does the boathouse open in summer? And in winter?"
        assert "8:00" in done["answer"]


def test_a_follow_up_when_the_small_model_fails(system: System, standin: AnthropicStandin) -> None:
    standin.misbehave("500")
    events = streamed(system, question="And on sundays?", history=HISTORY)
    assert events[0][1]["question"] == "When does the boathouse open in summer? And on sundays?"
    assert events[-1][0] == "done"


def test_without_strictness_unsupported_sentences_are_marked(system: System) -> None:
    events = streamed(system, strict=False)
    assert [data["status"] for name, data in events if name == "delta"] == ["supported", "unsupported", "supported"]
    assert events[-1][1]["verdict"] == "partial"
    assert [c["quote"] for c in events[-1][1]["citations"] if "harbour" in c["quote"]] == []


def test_a_sentence_arrives_before_the_next_one_is_written(system: System, standin: AnthropicStandin) -> None:
    standin.pace = 0.03
    with opened(system) as response:
        arrived = {name: at for name, _, at in reversed(list(read(response)))}  # the first event of each name
    assert arrived["delta"] < arrived["done"] - 0.2
    assert arrived["passages"] < arrived["delta"] - 0.05


def test_a_missing_answer_is_streamed_as_a_refusal(system: System, standin: AnthropicStandin) -> None:
    standin.reply = lambda request: [text_block(NO_ANSWER)]
    events = streamed(system)
    assert [name for name, _ in events] == ["passages", "done"]
    assert (events[-1][1]["answer"], events[-1][1]["verdict"]) == (NO_ANSWER, "no_answer")


@pytest.mark.parametrize("fault", ["error_event", "cut_stream", "broken_stream", "malformed_event"])
def test_a_failure_after_a_sentence_is_an_error(system: System, standin: AnthropicStandin, fault: str) -> None:
    standin.spoil_after = 40  # pieces: after the first sentence
    standin.reply = lambda request: [*three(request), text_block("word " * 200)]
    standin.misbehave(fault)
    events = streamed(system)
    names = [name for name, _ in events]
    assert names[0] == "passages"
    assert "delta" in names
    assert names[-1] == "error"
    assert "done" not in names
    assert events[-1][1]["status"] == 503
    assert "Ask again" in events[-1][1]["detail"]
    assert len(standin.requests) == 1  # no retry after a sentence was shown


@pytest.mark.parametrize("fault", ["error_event", "cut_stream", "broken_stream", "malformed_event", "500", "529"])
def test_a_failure_before_the_first_sentence_is_retried(system: System, standin: AnthropicStandin, fault: str) -> None:
    standin.misbehave(fault)
    assert streamed(system)[-1][0] == "done"
    assert len(standin.requests) == 2


def test_a_refusal_after_a_sentence_is_an_error(system: System, standin: AnthropicStandin) -> None:
    standin.stop_reason = "refusal"
    events = streamed(system)
    assert events[-1][0] == "error"
    assert "declined" in events[-1][1]["detail"]


def test_the_deadline_is_absolute(system: System, standin: AnthropicStandin) -> None:
    with restarted(system, ASKFOLDER_ASK_SECONDS="2"):
        with opened(system) as response:
            list(read(response))  # the first answer is slower, because it loads the SDK
        standin.requests.clear()
        standin.left.clear()
        standin.misbehave("stall")
        started = time.monotonic()
        with opened(system) as response:
            events = list(read(response))
        assert time.monotonic() - started > 1.9
        assert len(standin.requests) == 1
        assert standin.left.wait(30), "the stand-in sends pings until its caller leaves"
    assert events[-1][0] == "error"
    assert re.search(r"within (2|1\.\d) s", events[-1][1]["detail"]), "the time of the search is counted"


def test_heartbeats_are_sent_while_the_model_is_silent(system: System, standin: AnthropicStandin) -> None:
    standin.misbehave("hang", seconds=1.5)
    with opened(system) as response:
        events = list(read(response))
    assert sum(not name for name, _, _ in events) >= 2
    assert events[-1][0] == "done"


@pytest.mark.parametrize("fault", ["stall", ""])
def test_a_disconnected_client_ends_the_call_of_the_model(
    system: System, standin: AnthropicStandin, fault: str
) -> None:
    standin.reply = lambda request: [*three(request), text_block("word " * 20_000)]  # more than six minutes of output
    standin.pace = 0.0 if fault else 0.02
    if fault:
        standin.misbehave(fault)
    with opened(system) as response:
        next(read(response))
        time.sleep(0.3)
        assert not standin.left.is_set()
    assert standin.left.wait(30), "the model's call goes on"


def test_an_invalid_question_gets_an_error_status(system: System) -> None:
    with opened(system, top_k=0) as response:
        assert response.status_code == 422
        assert response.headers["content-type"] == "application/problem+json"
    with opened(system, collection="nowhere") as response:
        assert response.status_code == 422


def test_marks_are_used_if_a_server_does_not_cite(system: System, standin: AnthropicStandin) -> None:
    """A server without citations gets a second request for marks; true quotes are cited, forged ones are not."""

    def reply(request: dict[str, Any]) -> list[dict[str, Any]]:
        if search_results(request):
            return [text_block("I see no documents.")]
        return [
            text_block(
                'A lost oar costs 45 euros. [1: "A lost oar costs 45 euros"] '
                'It costs 46 euros. [1: "A lost oar costs 46 euros"] '
                'It costs 47 euros. [1] A lost oar costs 45 euros [9: "45 euros"].'
            )
        ]

    standin.reply, standin.plain = reply, True
    asked = "What does a lost oar cost?"
    with restarted(system):  # the server is known to cite by now
        done = streamed(system, question=asked, top_k=1)[-1][1]
        assert len(standin.requests) == 2
        streamed(system, question=asked, top_k=1)
        assert len(standin.requests) == 3  # the server is known not to cite
    assert done["answer"].startswith("A lost oar costs 45 euros. [1]"), done
    assert len(done["sentences"]) == 1
    assert (done["dropped"], done["removed"]) == (3, 3)
    assert [c["quote"] for c in done["citations"]] == ["A lost oar costs 45 euros"]


def test_the_command_line_reads_the_same_stream(system: System, standin: AnthropicStandin) -> None:
    with Client(f"http://127.0.0.1:{system.port}", KEY, 20) as client:
        events = list(client.events("/ask", {"question": QUESTION}))
        assert [name for name, _ in events] == ["passages", "citation", "delta", "citation", "delta", "done"]
        standin.misbehave("cut_stream", times=None)
        with pytest.raises(AskfolderError, match="ended early"):
            list(client.events("/ask", {"question": QUESTION}))


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (b'event: passages\ndata: {}\n\nevent: delta\ndata: {"text": "Half an ans', "ended too early"),
        (b'event: passages\ndata: {}\n\nevent: delta\ndata: {"text": "Half an answer."}\n\n', "ended too early"),
        (b": \n\n", "ended too early"),
    ],
)
def test_a_stream_that_ends_without_done_is_an_error(sent: bytes, message: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + sent)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):  # unread data would reset the connection
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        with (
            Client(f"http://127.0.0.1:{server.getsockname()[1]}", KEY, 5) as client,
            pytest.raises(AskfolderError, match=message),
        ):
            list(client.events("/ask", {"question": QUESTION}))
        thread.join()


def typed(system: System, terminal: bool, *arguments: str) -> tuple[int, str, str]:
    """Return exit code, output and error output of a command. `terminal`: its output is a terminal."""
    env = system.env | {"ASKFOLDER_URL": f"http://127.0.0.1:{system.port}", "ASKFOLDER_KEY": KEY}
    mine, theirs = pty.openpty() if terminal else (0, subprocess.PIPE)
    process = subprocess.Popen(
        [sys.executable, "-m", "shared.cli", *arguments], cwd=ROOT, env=env, stdout=theirs, stderr=subprocess.PIPE
    )
    if not terminal:
        out, err = process.communicate(timeout=30)
        return process.returncode, out.decode(), err.decode()
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # raised at the end of a terminal's output
        while data := os.read(mine, 4096):
            shown += data
    os.close(mine)
    err = process.communicate(timeout=30)[1]
    return process.returncode, shown.decode().replace("\r\n", "\n"), err.decode()


@pytest.mark.parametrize("terminal", [True, False])
def test_ask_on_the_command_line(system: System, standin: AnthropicStandin, terminal: bool) -> None:
    expected = system.call("POST", "/ask", {"question": QUESTION})
    code, out, err = typed(system, terminal, "ask", QUESTION)
    assert (code, out.split("\n\n[1]")[0]) == (0, expected["answer"])
    assert "left out" in err
    standin.spoil_after = 40
    standin.reply = lambda request: [*three(request), text_block("word " * 200)]
    standin.misbehave("cut_stream")
    code, out, err = typed(system, terminal, "ask", QUESTION)
    assert code == 1
    assert "ended early" in err
    assert out.endswith(" …\n") if terminal else out == ""


def test_a_hundred_simultaneous_streams(system: System, standin: AnthropicStandin) -> None:
    standin.pace = 0.01
    ends: list[str] = []

    def one() -> None:
        try:
            ends.append(streamed(system)[-1][0])
        except Exception as error:
            ends.append(repr(error))

    threads = [threading.Thread(target=one) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert ends.count("done") == 100, [end for end in ends if end != "done"][:3]
