"""A provider that says it is too much is left alone by all processes, and asked gently after that."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from shared import pace, queue
from shared.embedding import VoyageEmbedder
from shared.errors import TransientError
from shared.pace import Pace
from shared.servers import Servers
from tests.conftest import free_port
from tests.standins import VoyageStandin

URL = "https://user:password@api.example.com/v1"
Make = Callable[[], Pace]


@pytest.fixture
def redis_url(servers: Servers) -> Iterator[str]:
    url = servers.redis_url.replace("db=0", "db=15")
    with queue.client(url) as client:
        client.flushdb()
        yield url
        client.flushdb()


@pytest.fixture
def make(redis_url: str) -> Iterator[Make]:
    """Each as in a process of its own."""
    made: list[Pace] = []

    def new() -> Pace:
        made.append(Pace(redis_url, "Voyage", URL, "voyage-4"))
        return made[-1]

    yield new
    for one in made:
        one.close()


def test_an_idle_provider_is_asked_at_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "_sleep", lambda seconds: pytest.fail(f"slept {seconds} s"))
    one = make()
    for _ in range(100):
        assert one.wait(0) is False
        one.went_well()
    assert one._redis.keys("*") == []  # type: ignore[union-attr]


def test_a_pause_is_everybodys(make: Make) -> None:
    told, other = make(), make()
    told.slow(0.6)
    with pytest.raises(TransientError, match=r"Voyage asked to slow down; it is left alone for 1 s\.") as caught:
        other.wait(0.3)
    assert 0.4 < (caught.value.retry_after or 0) <= 0.6
    started = time.monotonic()
    assert other.wait(5) is True
    assert 0.5 < time.monotonic() - started < 0.9
    third = Pace("", "Voyage", URL, "voyage-4")  # nothing shared, nothing known
    assert third.wait(0) is False


def test_another_model_or_address_has_its_own_pause(redis_url: str, make: Make) -> None:
    make().slow(30)
    for url, model in ((URL, "voyage-4-lite"), ("https://other.example.com/v1", "voyage-4")):
        one = Pace(redis_url, "Voyage", url, model)
        assert one.wait(0) is False
        one.close()


def test_after_a_pause_requests_come_one_after_another_and_soon_as_before(make: Make) -> None:
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
    distances = [b - a for a, b in itertools.pairwise(times)]
    assert times[0] >= 0.3
    assert distances[0] >= pace.FIRST_MS / 2000 - 0.03  # the first that went well has halved it
    assert times[-1] < 3
    for _ in range(6):
        all_[0].went_well()
    assert all_[0].wait(0) is False


def test_without_success_the_distance_stays(make: Make) -> None:
    one, other = make(), make()
    one.slow(0.1)
    one.wait(5)
    started = time.monotonic()
    other.wait(5, urgent=True)
    assert time.monotonic() - started < 0.2, "somebody waits: only the pause counts"
    other.wait(5)
    assert time.monotonic() - started > pace.FIRST_MS / 1000 - 0.1


def test_many_that_are_told_at_once_count_as_one(make: Make) -> None:
    one = make()
    for _ in range(8):
        one.slow(0.2)
    assert int(one._redis.hget(one._key, "gap")) == pace.FIRST_MS  # type: ignore[union-attr, arg-type]
    one.slow(0.1)  # a shorter wish does not shorten the pause
    time.sleep(0.55)  # the pause is the first distance at least
    one.slow(None)
    assert int(one._redis.hget(one._key, "gap")) == 2 * pace.FIRST_MS  # type: ignore[union-attr, arg-type]


def test_a_request_of_before_the_pause_changes_nothing(make: Make) -> None:
    one = make()
    one.slow(5)
    one.went_well()
    with pytest.raises(TransientError):
        one.wait(1)
    assert int(one._redis.hget(one._key, "gap")) == pace.FIRST_MS  # type: ignore[union-attr, arg-type]


def test_without_redis_each_is_for_itself() -> None:
    one = Pace(f"redis://127.0.0.1:{free_port()}/0", "Voyage", URL, "voyage-4")
    one.slow(30)
    started = time.monotonic()
    for _ in range(100):
        assert one.wait(0) is False
        one.went_well()
    assert time.monotonic() - started < 1, "a server that is away is left alone for a while"
    one.close()


def test_no_request_arrives_while_the_provider_wants_none(redis_url: str) -> None:
    with VoyageStandin(delay=0.02) as standin:
        embedders = [VoyageEmbedder("key", base_url=standin.url, redis_url=redis_url) for _ in range(4)]
        barrier = threading.Barrier(4)

        def work(embedder: VoyageEmbedder) -> None:
            barrier.wait()
            for number in range(15):
                embedder.embed([f"a text, {number}"])
                if number == 3 and embedder is embedders[0]:
                    standin.misbehave("429", retry_after=1.0)

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(work, embedders))
        for embedder in embedders:
            embedder.close()
        times = sorted(request["time"] for request in standin.requests)
    assert len(times) == 4 * 15 + 1
    longest = max(b - a for a, b in itertools.pairwise(times))
    assert longest > 0.85, "all paused"
    assert times[-1] - times[0] < 6, "and went on"
