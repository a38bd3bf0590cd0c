"""Durability for users: a second producer, servers that stop and return, the delete guard over HTTP, the load.

All tests share one running system, each with its own subfolder; a test restarts the processes under test.
"""

import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import redis

from shared.system.servers import Servers
from tests.conftest import Share, System, running_system, until
from tests.standins.providers import OpenAIStandin


@pytest.fixture(scope="module")
def openai() -> Iterator[OpenAIStandin]:
    with OpenAIStandin() as standin:
        yield standin


@pytest.fixture(scope="module")
def running(
    servers: Servers, model: Path, tmp_path_factory: pytest.TempPathFactory, openai: OpenAIStandin
) -> Iterator[System]:
    env = {"ASKFOLDER_EMBEDDER": "openai", "OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": openai.url}
    with running_system(servers, model, tmp_path_factory.mktemp("durable"), **env) as system:
        yield system


@pytest.fixture
def system(running: System, openai: OpenAIStandin) -> Iterator[Share]:
    yield running.share()
    openai.delay = 0.0


def start_producer(system: System, name: str = "producer", **env: str) -> None:
    """Start a producer and wait until it serves the folder."""
    before = len(system.log(name))
    system.start(name, **env)
    until(lambda: "producer.serves" in system.log(name)[before:])


def test_a_second_producer_waits_and_takes_over(system: Share) -> None:
    until(lambda: "producer.serves" in system.log("producer"))
    system.start("producer:2")
    until(lambda: "producer.stands_by" in system.log("producer:2"))
    (system.folder / "a.txt").write_text("The heron stands still.")
    until(lambda: system.search("heron"))
    assert "scan.done" not in system.log("producer:2")
    system.stop("producer", number=signal.SIGKILL)
    (system.folder / "b.txt").write_text("The stork stands still.")
    until(lambda: [r for r in system.search("stork") if r["source"] == "b.txt"])
    assert "producer.serves" in system.log("producer:2")


def test_a_scan_request_without_a_producer_is_refused(system: Share) -> None:
    system.stop("producer")
    answer = until(lambda: (a := system.call("POST", "/reconcile", {}, quiet=True)).get("title") == "No producer" and a)
    assert "no producer" in str(answer).lower()


def test_the_delete_guard_over_http(system: Share) -> None:
    for n in range(30):
        (system.folder / f"{n}.txt").write_text(f"Heron number {n} stands still.")
    system.settled(30)
    count = sum(system.call("GET", "/documents")["counts"].values())  # including the documents of other tests
    for n in range(25):
        (system.folder / f"{n}.txt").unlink()
    problem = until(lambda: system.call("GET", "/documents")["problems"])
    assert f"25 of the {count} documents" in problem[0]
    assert system.call("GET", "/documents")["counts"] == {"ready": count}
    (source,) = system.call("GET", "/sources")["sources"]
    assert source["held"]
    assert source["served"]
    system.call("POST", "/reconcile", {"confirm": True})
    until(lambda: system.call("GET", "/documents")["counts"] == {"ready": count - 25})
    assert system.call("GET", "/documents")["problems"] == []
    assert len(system.search("heron", top_k=100)) == 5


def test_deleted_documents_are_not_cited_while_redis_is_unavailable(system: Share) -> None:
    (system.folder / "a.txt").write_text("The heron stands still.")
    until(lambda: system.search("heron"))
    system.stop("producer", "worker")
    start_producer(system, REDIS_URL="redis://127.0.0.1:1/0")
    (system.folder / "b.txt").write_text("The stork stands still.")
    (system.folder / "a.txt").unlink()
    until(lambda: not system.search("heron", mode="lexical"))
    until(lambda: system.documents().get("b.txt", {}).get("state") == "queued")
    until(lambda: "Cannot publish to Redis" in system.log("producer"))
    system.stop("producer")
    system.start("worker", "producer")
    until(lambda: system.search("stork"))


def test_progress_and_speed_are_reported(system: Share, openai: OpenAIStandin) -> None:
    openai.delay = 0.3
    system.stop("worker")  # so that all documents wait for a moment
    for n in range(25):
        (system.folder / f"{n}.txt").write_text(f"Heron number {n} stands quite still.")
    until(lambda: len(system.documents()) == 25)
    system.start("worker")

    def load_on_the_way() -> Any:
        load = system.call("GET", "/documents")["load"]
        return load if load["eta_seconds"] and 0 < load["waiting"] < 25 else None

    load = until(load_on_the_way)
    assert load["oldest_seconds"] > 0
    assert load["per_minute"] > 0
    system.settled(25)
    load = system.call("GET", "/documents")["load"]
    assert (load["waiting"], load["oldest_seconds"], load["eta_seconds"]) == (0, None, 0)
    assert load["per_minute"] > 0


def test_lost_database_connections_use_up_no_attempt(system: Share, servers: Servers, openai: OpenAIStandin) -> None:
    """Connections are cut repeatedly while documents are embedded: all become ready and none is quarantined."""
    openai.delay = 0.1
    for n in range(8):
        (system.folder / f"{n}.txt").write_text("\n".join(f"Heron {n} {k} stands still." for k in range(800)))
    ended = threading.Event()

    def cut() -> None:
        name = system.env["DATABASE_URL"].partition("?")[0].rpartition("/")[2]
        admin = servers.database_url.replace("/askfolder?", "/postgres?")
        with psycopg.connect(admin, autocommit=True) as connection:
            while not ended.wait(1.5):
                connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])

    cutting = threading.Thread(target=cut)
    until(lambda: any(d["stage"] == "embedding" for d in system.documents().values()))
    cutting.start()
    time.sleep(4)
    ended.set()
    cutting.join()
    rows = system.settled(8, 90)
    assert {(row["state"], row["error"]) for row in rows.values()} == {("ready", None)}
    assert system.call("POST", "/doctor", {})["ok"]


PATIENT_PRODUCER = """
from shared.ledger import documents
from worker import producer
documents.REPUBLISH_SECONDS = 3600.0
producer.main()
"""


def test_an_emptied_queue_is_noticed_at_once(system: Share) -> None:
    """The producer notices the empty queue; by the age of a task alone it would wait for an hour."""
    system.stop("worker", "producer")
    system.run("producer", [sys.executable, "-c", PATIENT_PRODUCER])
    (system.folder / "a.txt").write_text("The heron stands on one leg.")
    until(lambda: system.documents().get("a.txt", {}).get("state") == "queued")
    with redis.Redis.from_url(system.env["REDIS_URL"]) as client:
        until(lambda: any(client.type(key) == b"list" for key in client.keys("folder-*")))
        client.flushdb()
    system.start("worker")
    until(lambda: system.search("heron"))


def test_a_frozen_database_is_reported_as_not_ready(system: Share, servers: Servers) -> None:
    until(lambda: system.call("GET", "/readyz", quiet=True)["missing"] == {})
    postgres = psutil.Process(servers.processes["postgres"].pid)
    family = [postgres, *postgres.children(recursive=True)]
    try:
        for process in family:
            process.suspend()
        assert "database" in system.call("GET", "/readyz", status=503)["missing"]
        assert system.call("GET", "/healthz") == {"status": "ok"}
    finally:
        for process in family:
            process.resume()
    until(lambda: system.call("GET", "/readyz", quiet=True)["missing"] == {})
