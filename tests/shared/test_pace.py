"""All processes pause when a provider asks to slow down, and resume gradually."""

import contextlib
import itertools
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from api.retrieval.rerankers import ClaudeReranker
from api.verification.second_opinion import SecondOpinion
from shared import broker
from shared.errors import TransientError
from shared.models import Waiting
from shared.providers import pace
from shared.providers.claude import Claude, Deadline
from shared.providers.meter import Meter, Purpose
from shared.providers.pace import Pace
from shared.providers.rerank import VoyageReranker
from shared.providers.voyage import VoyageEmbedder
from shared.settings import ROOT
from shared.system.servers import Servers
from tests.conftest import KEY, System, free_port
from tests.standins.providers import AnthropicStandin, Standin, VoyageStandin, text_block, write_contexts
from tests.worker.test_contexts import document
from worker.indexing.contexts import ContextWriter

URL = "https://user:password@api.example.com/v1"
MODEL = "claude-haiku-5-5"
Make = Callable[[], Pace]


@pytest.fixture
def redis_url(servers: Servers) -> Iterator[str]:
    url = servers.redis_url.replace("db=0", "db=15")
    with broker.client(url) as client:
        client.flushdb()
        yield url
        client.flushdb()


@pytest.fixture
def make(redis_url: str) -> Iterator[Make]:
    """Open paces that share only Redis, as separate processes do."""
    made: list[Pace] = []

    def new() -> Pace:
        made.append(Pace(redis_url, "Voyage", URL, "voyage-4"))
        return made[-1]

    yield new
    for one in made:
        one.close()


def known(pace: Pace) -> dict[str, int]:
    """Return the record in Redis, in ms. It is empty if no pause is recorded."""
    assert pace.redis is not None
    record: Any = pace.redis.hgetall(pace.key)
    return {name.decode(): int(value) for name, value in record.items()}


def change(pace: Pace, **values: float) -> None:
    assert pace.redis is not None
    pace.redis.hset(pace.key, mapping={name: int(value) for name, value in values.items()})


def test_without_a_pause_requests_start_at_once(redis_url: str) -> None:
    one = Pace(redis_url, "Voyage", URL, "voyage-4", sleep=lambda seconds: pytest.fail(f"slept {seconds} s"))
    for _ in range(100):
        assert one.wait(0) is False
        one.went_well()
    assert not known(one)
    one.close()


def test_a_pause_applies_to_all_processes(make: Make) -> None:
    slowed, other = make(), make()
    started = time.monotonic()
    slowed.slow(2)
    with pytest.raises(TransientError, match=r"Voyage asked to slow down; requests pause for [12] s\.") as caught:
        other.wait(0.1)
    assert 0.1 < (caught.value.retry_after or 0) <= 2
    assert other.wait(20) is True
    assert time.monotonic() - started >= 1.99
    third = Pace("", "Voyage", URL, "voyage-4")  # without Redis no pause is known
    assert third.wait(0) is False


def test_another_model_or_address_has_its_own_pause(redis_url: str, make: Make) -> None:
    make().slow(30)
    for url, model in ((URL, "voyage-4-lite"), ("https://other.example.com/v1", "voyage-4")):
        one = Pace(redis_url, "Voyage", url, model)
        assert one.wait(0) is False
        one.close()


def test_after_a_pause_requests_are_spaced_and_resume_gradually(make: Make) -> None:
    all_, started = [make() for _ in range(8)], time.monotonic()
    all_[0].slow(0.3)
    times: list[float] = []

    def ask(one: Pace) -> None:
        one.wait(20)
        times.append(time.monotonic() - started)
        one.went_well()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(ask, all_))
    times.sort()
    first = pace.FIRST_MS / 1000
    assert times[0] >= first - 0.01, "the pause is the first distance at least"
    assert times[1] >= first + first / 2 - 0.01, "the first that went well has halved it"
    assert not known(all_[0]), "the last ones keep none"
    assert all_[0].wait(0) is False


def test_without_a_success_the_spacing_remains(make: Make) -> None:
    one, other = make(), make()
    started = time.monotonic()
    one.slow(0.1)
    one.wait(20)
    other.wait(20)
    assert time.monotonic() - started >= 2 * pace.FIRST_MS / 1000 - 0.01, "the pause, and the distance"
    change(one, next=time.time() * 1000 + 60_000)
    assert other.wait(5, urgent=True) is True, "somebody waits: only the pause counts"
    with pytest.raises(TransientError):
        other.wait(5)


def test_simultaneous_requests_to_slow_down_count_once(make: Make) -> None:
    one = make()
    for _ in range(8):
        one.slow(30)
    assert known(one)["gap"] == pace.FIRST_MS
    until = known(one)["pause"]
    one.slow(0.1)
    assert known(one)["pause"] == until, "a shorter wish does not shorten the pause"
    change(one, pause=0)
    one.slow(None)
    assert known(one)["gap"] == 2 * pace.FIRST_MS
    change(one, pause=0, gap=pace.LONGEST_MS)
    one.slow(None)
    assert known(one)["gap"] == pace.LONGEST_MS


def test_a_success_from_before_the_pause_changes_nothing(make: Make) -> None:
    one = make()
    one.slow(30)
    one.went_well()
    with pytest.raises(TransientError):
        one.wait(1)
    assert known(one)["gap"] == pace.FIRST_MS


def test_without_redis_each_process_keeps_its_own_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "AWAY_SECONDS", 3600.0)
    with hanging_up() as (port, connections):
        one = Pace(f"redis://127.0.0.1:{port}/0", "Voyage", URL, "voyage-4")
        one.slow(30)
        attempts = len(connections)
        assert attempts > 0
        for _ in range(100):
            assert one.wait(0) is False
            one.went_well()
        one.close()
    assert len(connections) == attempts, "a server that is away is left alone for a while"


@contextlib.contextmanager
def hanging_up() -> Iterator[tuple[int, list[socket.socket]]]:
    """Run a server that closes each connection at once. Yield its port and the connections so far."""
    connections: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connections.append(server.accept()[0])
                    connections[-1].close()

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1], connections
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_no_request_arrives_during_a_pause(redis_url: str) -> None:
    with VoyageStandin(delay=0.02) as standin:
        embedders = [VoyageEmbedder(standin.endpoint("key"), meter=Meter(redis_url=redis_url)) for _ in range(4)]
        barrier = threading.Barrier(4)

        def work(embedder: VoyageEmbedder) -> None:
            barrier.wait()
            for number in range(15):
                embedder.embed([f"a text, {number}"])
                if number == 3 and embedder is embedders[0]:
                    standin.misbehave("429", retry_after=2.5)

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(work, embedders))
        for embedder in embedders:
            embedder.close()
        times = sorted(request["time"] for request in standin.requests)
    assert len(times) == 4 * 15 + 1
    longest = max(b - a for a, b in itertools.pairwise(times))
    assert longest > 1.5, "all paused"


# --- Claude


@pytest.fixture
def anthropic() -> Iterator[AnthropicStandin]:
    with AnthropicStandin(reply=lambda _: [text_block("Balduin.")]) as standin:
        yield standin


def elsewhere(redis_url: str, standin: Standin, model: str = MODEL, who: str = "Claude") -> Pace:
    """Return the pace of another process for the same model and address."""
    return Pace(redis_url, who, standin.url, model)


def connect(standin: AnthropicStandin, redis_url: str) -> Claude:
    return Claude(KEY, standin.url, Meter(redis_url=redis_url))


def complete(standin: AnthropicStandin, redis_url: str, purpose: Purpose = "answers", model: str = MODEL) -> None:
    """Ask one question. The purpose sets the attempts (rewriting: one) and the urgency (context: not urgent)."""
    connect(standin, redis_url).complete(purpose, model, "", "Who?", 9, 20)


def stream(
    standin: AnthropicStandin, redis_url: str, seconds: float = 20, purpose: Purpose = "answers"
) -> Generator[Any]:
    request = {"max_tokens": 9, "system": "", "messages": [{"role": "user", "content": "Who?"}]}
    return connect(standin, redis_url).stream(purpose, MODEL, request, iter, Deadline.after(seconds))


ASK = """
import sys
from shared.providers.claude import Claude
from shared.providers.meter import Meter
url, redis_url, model = sys.argv[1:]
claude = Claude("key", url, Meter(redis_url=redis_url))
print("ready", flush=True)
input()
claude.complete("answers", model, "", "Who?", 9, 30)
print("answered", flush=True)
"""


@pytest.mark.parametrize("fault", ["429", "529"])
def test_all_processes_keep_the_pause_of_one(redis_url: str, anthropic: AnthropicStandin, fault: str) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", ASK, anthropic.url, redis_url, MODEL],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        anthropic.misbehave(fault, retry_after=1.5)
        with pytest.raises(TransientError):
            complete(anthropic, redis_url, "rewriting")
        assert other.communicate("\n", 40)[0] == "answered\n"
    refused, answered = (request["time"] for request in anthropic.requests)
    assert answered - refused >= 1.4, "it came before the pause was over"


def test_an_overload_in_the_middle_of_an_answer_causes_a_pause(redis_url: str, anthropic: AnthropicStandin) -> None:
    anthropic.misbehave("error_event")
    with pytest.raises(TransientError, match="overloaded"):
        list(stream(anthropic, redis_url, purpose="rewriting"))
    assert known(elsewhere(redis_url, anthropic))
    anthropic.misbehave("500", times=None)
    with pytest.raises(TransientError):
        complete(anthropic, redis_url, "rewriting", "another")
    assert elsewhere(redis_url, anthropic, "another").wait(0) is False, "one that fails may be asked"


def test_a_waiting_stream_reports_the_wait_and_can_be_closed(redis_url: str, anthropic: AnthropicStandin) -> None:
    elsewhere(redis_url, anthropic).slow(2)
    found = stream(anthropic, redis_url)
    waited = list(itertools.takewhile(lambda item: isinstance(item, Waiting), found))
    assert len(waited) >= 3
    assert "message_stop" in [getattr(event, "type", "") for event in found]
    assert len(anthropic.requests) == 1

    elsewhere(redis_url, anthropic).slow(600)
    found = stream(anthropic, redis_url, 1200)
    assert [next(found), next(found)] == [Waiting(), Waiting()]
    found.close()
    with pytest.raises(TransientError, match="requests pause"):  # the pause is still in effect
        elsewhere(redis_url, anthropic).wait(0)
    assert len(anthropic.requests) == 1


def test_answers_keep_the_pause_but_not_the_spacing_of_contexts(
    redis_url: str, anthropic: AnthropicStandin, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = elsewhere(redis_url, anthropic)
    other.slow(0.1)
    other.wait(20)
    change(other, gap=60_000, next=time.time() * 1000 + 60_000)
    parsed, chunks = document(1)
    with pytest.raises(TransientError, match=r"Claude asked to slow down; requests pause for \d\d s"):
        complete(anthropic, redis_url, "context")
    writer = ContextWriter(connect(anthropic, redis_url), MODEL)
    monkeypatch.setattr("worker.indexing.contexts.SECONDS", 5.0)
    with pytest.raises(TransientError, match="requests pause"):
        list(writer.write("a.txt", parsed, chunks))
    assert not anthropic.requests
    complete(anthropic, redis_url)
    assert known(other)["gap"] == 30_000, "it went well"
    for _ in range(11):
        complete(anthropic, redis_url)
    assert not known(other)
    anthropic.reply = write_contexts
    assert list(writer.write("a.txt", parsed, chunks))


def test_a_request_with_little_time_fails_at_once(redis_url: str, anthropic: AnthropicStandin) -> None:
    elsewhere(redis_url, anthropic).slow(400)
    meter, claude = Meter(redis_url=redis_url), connect(anthropic, redis_url)
    with VoyageStandin() as voyage:
        elsewhere(redis_url, voyage, "rerank-2.5", "Voyage").slow(400)
        rerankers = (
            ClaudeReranker(claude, MODEL, 300),
            VoyageReranker(voyage.endpoint(KEY), "rerank-2.5", 300, meter),
        )
        for reranker in rerankers:
            with pytest.raises(TransientError, match=r"asked to slow down; requests pause for \d{3} s") as caught:
                reranker.rerank("Who?", ["a", "b"])
            assert 300 < (caught.value.retry_after or 0) <= 400
        assert SecondOpinion(claude, MODEL, Deadline.after(300))("a", ["b"]) is None
        with pytest.raises(TransientError) as caught:
            elsewhere(redis_url, anthropic).wait(0)
        assert (caught.value.retry_after or 0) > 300, "none of them used the time that it had"
        assert not voyage.requests
        assert not anthropic.requests


def test_the_voyage_reranker_shares_its_pause(redis_url: str) -> None:
    with VoyageStandin() as voyage:
        reranker = VoyageReranker(voyage.endpoint(KEY), "rerank-2.5", 30, Meter(redis_url=redis_url))
        other = elsewhere(redis_url, voyage, "rerank-2.5", "Voyage")
        voyage.misbehave("429", retry_after=1.2)
        with pytest.raises(TransientError):
            reranker.rerank("Who?", ["a", "b"])
        assert known(other)
        for _ in range(6):
            reranker.rerank("Who?", ["a", "b"])
        assert voyage.requests[1]["time"] - voyage.requests[0]["time"] >= 1.15
        assert other.wait(0) is False, "it went well"
        voyage.misbehave("429", message="insufficient_quota")
        with pytest.raises(TransientError):
            reranker.rerank("Who?", ["a", "b"])
        assert other.wait(0) is False, "no waiting helps who has no credit"
        reranker.close()


def test_without_redis_calls_of_claude_still_wait(anthropic: AnthropicStandin) -> None:
    anthropic.misbehave("429", retry_after=0.6)
    complete(anthropic, f"redis://127.0.0.1:{free_port()}/0")
    first, second = (request["time"] for request in anthropic.requests)
    assert second - first >= 0.55


@pytest.mark.parametrize("after", ["inf", "nan", "-5", "soon", "1e300"])
def test_an_invalid_retry_after_is_ignored(redis_url: str, anthropic: AnthropicStandin, after: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Standin,
            "refuse",
            lambda self, handler, status, **_: handler.send_json(
                status, self.error_body(status, "No.", None), {"retry-after": after}
            ),
        )
        anthropic.misbehave("429")
        with pytest.raises(TransientError, match="rate limit"):
            complete(anthropic, redis_url, "rewriting")
    pause = known(elsewhere(redis_url, anthropic))["pause"] / 1000 - time.time()
    assert pause <= pace.LONGEST_PAUSE


def test_an_answer_beyond_the_deadline_reports_the_remaining_pause(system: System, anthropic: AnthropicStandin) -> None:
    (system.folder / "heron.md").write_text("# The heron\n\nThe heron is called Balduin.\n")
    system.start("web", "worker", "producer", ANTHROPIC_API_KEY=KEY, ANTHROPIC_BASE_URL=anthropic.url)
    system.settled(1)
    anthropic.misbehave("429", retry_after=500)
    url, body = f"http://127.0.0.1:{system.port}/ask", {"question": "What is the heron called?"}
    details = []
    with httpx2.Client(trust_env=False, timeout=60, headers={"Authorization": f"Bearer {KEY}"}) as client:
        for _ in range(2):
            response = client.post(url, json=body)
            assert response.status_code == 503
            assert 400 < int(response.headers["retry-after"]) <= 500
            details.append(response.json()["detail"])
        events = client.post(url, json=body, headers={"Accept": "text/event-stream"}).text
    assert "rate limit is reached" in details[0]
    assert re.match(r"Claude asked to slow down; requests pause for \d{3} s\.", details[1])
    assert events.index("event: passages") < events.index("event: error")
    assert '"status": 503' in events
    assert len(anthropic.requests) == 1, "it is left alone"
