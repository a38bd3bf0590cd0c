"""The short form of each fault campaign (`make faults` runs the full form) on one running system."""

from collections.abc import Iterator

import pytest

from shared.db import Connection
from shared.ledger import claims
from shared.system.servers import Servers
from tests.faults import away, embedder, floods, kills, outages, writers
from tests.faults.folder import Sizes
from tests.faults.ledger import Walk
from tests.faults.result import Result
from tests.faults.system import Faulty, running, started_servers

SIZES = Sizes(small=(3, 20), middle_every=8, middle=(150, 300), large_every=0)

SHARES = {
    kind: share for kind, share in kills.SHARES.items() if kind != "queue"
}  # test_redis_dies_in_all_ways covers the queue


@pytest.fixture(scope="module")
def own_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Start servers that may be killed."""
    with started_servers(tmp_path_factory.mktemp("faults")) as servers:
        yield servers


@pytest.fixture(scope="module")
def faulty(own_servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    with running(own_servers, tmp_path_factory.mktemp("faults")) as system:
        yield system


def holds(result: Result) -> None:
    broken = [f"{figure.what}: {figure.value}, must be {figure.must}" for figure in result.figures if not figure.holds]
    assert result.ok, "; ".join(broken + result.remarks)


def test_an_unavailable_source(faulty: Faulty) -> None:
    holds(away.source_away(faulty, documents=40, still=0.5))


def test_files_created_while_the_producer_is_stopped(faulty: Faulty) -> None:
    holds(floods.stopped_producer(faulty, files=300, notes=2, found=30))


def test_hostile_files(faulty: Faulty) -> None:
    holds(floods.hostile(faulty, good=10, most_hostile=24))


def test_a_failing_embedder(faulty: Faulty) -> None:
    holds(embedder.embedder(faulty, times=1, documents=1, long_seconds=2, long=("429",)))


def test_redis_dies_in_all_ways(faulty: Faulty) -> None:
    holds(outages.redis(faulty, flushes=1, cuts=3, documents=12, sizes=SIZES, hole=(1, 2)))


def test_postgres_stops_at_once(faulty: Faulty) -> None:
    holds(outages.postgres(faulty, stops=2, documents=12, sizes=SIZES, down=(0.3, 0.6), up=(0.5, 1)))


def test_concurrent_writers(faulty: Faulty) -> None:
    holds(writers.writers(faulty, writers=8, documents=5, seconds=5, slow=(0.0, 3.0)))


KILLED_SIZES = Sizes(
    small=(3, 20), middle_every=3, middle=(600, 1200), large_every=0
)  # large documents take time to chunk


def test_killed_processes(faulty: Faulty) -> None:
    holds(kills.kills(faulty, kills=12, documents=30, sizes=KILLED_SIZES, pause=0.3, shares=SHARES))


@pytest.mark.parametrize("seed", range(12))
def test_the_ledger_with_steps_in_any_order(connection: Connection, seed: int) -> None:
    Walk(connection, seed).run()


def test_the_ledger_without_its_fence_is_damaged(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "lock", lambda *_: None)
    with pytest.raises(AssertionError, match="came after"):
        walk_all(connection, 60)


def walk_all(connection: Connection, seeds: int) -> None:
    for seed in range(seeds):
        Walk(connection, seed).run()
