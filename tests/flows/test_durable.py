"""What people see of durability: a second producer, servers that go and come back, the guard over HTTP, the state of things."""

import signal
import threading
import time

import psutil
import psycopg
import redis

from shared.ledger import documents
from shared.system.servers import Servers
from tests.conftest import System, until
from tests.standins.providers import OpenAIStandin


def test_second_producer_stands_by_and_takes_over(system: System) -> None:
    system.start("web", "worker", "producer")
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


def test_guard_over_http(system: System) -> None:
    assert "no producer" in str(system_problem(system)).lower()
    for n in range(30):
        (system.folder / f"{n}.txt").write_text(f"Heron number {n} stands still.")
    system.start("worker", "producer")
    system.settled(30)
    for n in range(25):
        (system.folder / f"{n}.txt").unlink()
    problem = until(lambda: system.call("GET", "/documents")["problems"])
    assert "25 of the 30 documents" in problem[0]
    assert system.call("GET", "/documents")["counts"] == {"ready": 30}
    (source,) = system.call("GET", "/sources")["sources"]
    assert source["held"]
    assert source["served"]
    system.call("POST", "/reconcile", {"confirm": True})
    until(lambda: system.call("GET", "/documents")["counts"] == {"ready": 5})
    assert system.call("GET", "/documents")["problems"] == []
    assert len(system.search("heron", top_k=100)) == 5


def system_problem(system: System) -> object:
    """What a request for a scan says while there is no producer."""
    system.start("producer")  # it makes the index, without which there is nothing to ask
    until(lambda: "producer.serves" in system.log("producer"))
    system.start("web")
    system.stop("producer")
    return until(lambda: (a := system.call("POST", "/reconcile", {}, quiet=True)).get("title") == "No producer" and a)


def test_deleted_documents_leave_answers_while_redis_is_away(system: System) -> None:
    (system.folder / "a.txt").write_text("The heron stands still.")
    system.start("web", "worker", "producer")
    until(lambda: system.search("heron"))
    system.stop("producer", "worker")
    system.start("producer", REDIS_URL="redis://127.0.0.1:1/0")
    until(lambda: "producer.serves" in system.log("producer").rpartition("scan.done")[2])
    (system.folder / "b.txt").write_text("The stork stands still.")
    (system.folder / "a.txt").unlink()
    until(lambda: not system.search("heron", mode="lexical"))
    until(lambda: system.documents().get("b.txt", {}).get("state") == "queued")
    until(lambda: "Cannot publish to Redis" in system.log("producer"))
    system.stop("producer")
    system.start("worker", "producer")
    until(lambda: system.search("stork"))


def test_how_far_and_how_fast(system: System) -> None:
    with OpenAIStandin(delay=0.3) as openai:
        system.env |= {"ASKFOLDER_EMBEDDER": "openai", "OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": openai.url}
        for n in range(25):
            (system.folder / f"{n}.txt").write_text(f"Heron number {n} stands still.")
        system.start("web", "worker", "producer")
        load = until(lambda: (a := system.call("GET", "/documents")["load"])["eta_seconds"] and a["waiting"] and a)
        assert 0 < load["waiting"] < 25
        assert load["oldest_seconds"] > 0
        assert load["per_minute"] > 0
        system.settled(25)
        load = system.call("GET", "/documents")["load"]
        assert (load["waiting"], load["oldest_seconds"], load["eta_seconds"]) == (0, None, 0)
        assert load["per_minute"] > 0


def test_database_that_goes_away_in_the_middle_costs_no_attempt(
    system: System, servers: Servers, database_url: str
) -> None:
    """Connections are cut while documents are embedded, again and again: all is ready, none is set aside."""
    with OpenAIStandin(delay=0.1) as openai:
        system.env |= {"ASKFOLDER_EMBEDDER": "openai", "OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": openai.url}
        for n in range(8):
            (system.folder / f"{n}.txt").write_text("\n".join(f"Heron {n} {k} stands still." for k in range(800)))
        system.start("web", "worker", "producer")
        ended = threading.Event()

        def cut() -> None:
            name = database_url.partition("?")[0].rpartition("/")[2]
            admin = servers.database_url.replace("/askfolder?", "/postgres?")
            with psycopg.connect(admin, autocommit=True) as connection:
                while not ended.wait(1.5):
                    connection.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
                    )

        cutting = threading.Thread(target=cut)
        until(lambda: any(d["stage"] == "embedding" for d in system.documents().values()))
        cutting.start()
        time.sleep(4)
        ended.set()
        cutting.join()
        rows = system.settled(8, 90)
        assert {(row["state"], row["error"]) for row in rows.values()} == {("ready", None)}
        assert system.call("POST", "/doctor", {})["ok"]


def test_emptied_queue_is_noticed_at_once(system: System, servers: Servers) -> None:
    (system.folder / "a.txt").write_text("The heron stands still.")
    system.start("web", "producer")
    until(lambda: system.documents().get("a.txt", {}).get("state") == "queued")
    with redis.Redis.from_url(system.env["REDIS_URL"]) as client:
        until(lambda: any(client.type(key) == b"list" for key in client.keys("folder-*")))
        client.flushdb()
    system.start("worker")
    started = time.monotonic()
    until(lambda: system.search("heron"))
    assert time.monotonic() - started < documents.REPUBLISH_SECONDS * 0.8


def test_frozen_database_is_told_from_one_that_answers(system: System, servers: Servers) -> None:
    system.start("producer")
    until(lambda: "producer.serves" in system.log("producer"))
    system.start("web")
    assert system.call("GET", "/readyz")["missing"] == {}
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
