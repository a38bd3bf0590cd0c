"""The lease of a lost process: its return, and the failure that is recorded for the document."""

import os
import signal
import subprocess
import sys

import psycopg
import pytest
import redis
from celery.exceptions import Terminated, TimeLimitExceeded, WorkerLostError

from shared.db import Connection
from shared.ledger import claims, documents, listing, sources
from tests.conftest import System, until
from tests.standins.providers import OpenAIStandin
from worker.leases import blame, hand_back_dead, name_of


@pytest.mark.parametrize(
    ("error", "out_of_memory", "reason"),
    [
        (WorkerLostError("Worker exited prematurely: signal 9 (SIGKILL) Job: 1."), False, None),
        (WorkerLostError("Worker exited prematurely: signal 15 (SIGTERM) Job: 1."), False, None),
        (WorkerLostError("Worker exited prematurely: signal 9 (SIGKILL) Job: 1."), True, "out of memory"),
        (WorkerLostError("Worker exited prematurely: signal 11 (SIGSEGV) Job: 1."), False, "a crash, signal 11"),
        (
            WorkerLostError("Worker exited prematurely: exitcode 1 Job: 1."),
            False,
            "the process exited without a reason",
        ),
        (TimeLimitExceeded(3600), False, "it exceeded the time limit"),
        (Terminated(15), False, None),
        (SystemExit(), False, None),
    ],
)
def test_the_reason_of_a_lost_process(error: BaseException, out_of_memory: bool, reason: str | None) -> None:
    assert blame(error, out_of_memory) == reason


def leased(connection: Connection, worker: str, attempts: int) -> int:
    source = sources.source(connection, "folder", "/somewhere")
    documents.enqueue(connection, source, [("a.txt", "1-5", 5)])
    (due,) = documents.due(connection, [source], 1)
    connection.execute("UPDATE document SET attempts = %s WHERE id = %s", [attempts - 1, due.id])
    assert claims.claim(connection, due.id, worker)
    return due.id


@pytest.mark.parametrize(
    ("reason", "attempts", "after"),
    [
        (None, 1, ("queued", 0)),
        (None, 3, ("queued", 2)),
        ("a crash", 1, ("queued", 1)),
        ("a crash", 3, ("quarantined", 3)),
    ],
)
def test_a_lease_is_handed_back(
    connection: Connection, reason: str | None, attempts: int, after: tuple[str, int]
) -> None:
    number = leased(connection, "here:1", attempts)
    assert documents.hand_back(connection, ["here:2"], reason) == 0
    assert claims.claim(connection, number, "here:3") is None
    documents.hand_back(connection, ["here:1"], reason)
    row = connection.execute("SELECT state, attempts, (SELECT count(*) FROM task) FROM document").fetchone()
    assert row == (*after, 0)
    if after[0] == "quarantined":
        error = str(listing.one(connection, number)["error"])  # type: ignore[index]
        assert "a.txt ended its worker process 3 times (a crash)" in error
        assert "askfolder retry" in error


def test_progress_resets_the_attempts(connection: Connection) -> None:
    leased(connection, "here:1", 3)
    (number,) = connection.execute("SELECT id FROM document").fetchone()  # type: ignore[misc]
    connection.execute("DELETE FROM task")
    connection.execute("UPDATE document SET state = 'queued', attempts = 2")
    claim = claims.claim(connection, number, "here:1")
    assert claim
    assert claim.attempts == 3
    claims.progress(connection, claim, "embedding", 1, 2, further=True)
    connection.execute("UPDATE task SET leased_until = now() - interval '1 second'")
    documents.sweep(connection)
    assert listing.one(connection, number)["state"] == "queued"  # type: ignore[index]


def test_a_killed_process_returns_its_lease_without_an_attempt(system: System, database_url: str) -> None:
    """Five kills exceed the three attempts, but a document is not blamed for the kill of its process."""
    (system.folder / "a.txt").write_text("\n".join(f"Line {n} tells of heron number {n * 7919}." for n in range(300)))
    with OpenAIStandin(delay=1.0) as openai:
        system.env |= {"ASKFOLDER_EMBEDDER": "openai", "OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": openai.url}
        system.start("web", "worker", "producer")
        with psycopg.connect(database_url, autocommit=True) as connection:
            seen: set[str] = set()
            for _ in range(5):
                worker = until(lambda: holder(connection, seen), 15, pause=0.01)  # far sooner than the lease's 45 s
                seen.add(worker)
                os.kill(int(worker.rpartition(":")[2]), signal.SIGKILL)
        openai.delay = 0
        assert system.settled(1, 30)["a.txt"]["state"] == "ready"
    assert "ended from outside" in system.log("worker")


def holder(connection: psycopg.Connection[tuple[str]], but: set[str]) -> str | None:
    row = connection.execute(
        "SELECT worker FROM askfolder.task WHERE lease IS NOT NULL AND NOT worker = ANY(%s)", [list(but)]
    ).fetchone()
    return row[0] if row else None


def test_a_terminating_worker_hands_back_its_leases(system: System, database_url: str) -> None:
    (system.folder / "big.txt").write_text(
        "\n".join(f"Line {n} tells of heron number {n * 7919}." for n in range(9000))
    )
    system.start("web", "worker", "producer")
    with psycopg.connect(database_url, autocommit=True) as connection:
        until(lambda: connection.execute("SELECT 1 FROM askfolder.task WHERE stage = 'embedding'").fetchone())
        worker = system.processes["worker"]
        system.stop("worker")
        assert worker.returncode != -signal.SIGKILL, "it ended by itself, before it would have been killed"
        row = connection.execute(
            """
            SELECT state, attempts, (SELECT count(*) FROM askfolder.task WHERE lease IS NOT NULL)
            FROM askfolder.document
            """
        ).fetchone()
        assert row == ("queued", 0, 0)
        assert connection.execute("SELECT count(*) FROM askfolder.worker").fetchone() == (0,)


def test_leases_of_a_dead_worker_are_handed_back(connection: Connection) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    number = leased(connection, name_of(ended.pid, ended.pid), 1)
    hand_back_dead(connection)
    assert listing.one(connection, number)["state"] == "queued"  # type: ignore[index]
    for main, pid in ((ended.pid, os.getpid()), (os.getpid(), os.getpid()), (os.getpid(), ended.pid)):
        connection.execute("DELETE FROM task")
        connection.execute("UPDATE document SET not_before = NULL, state = 'queued'")
        assert claims.claim(connection, number, name_of(pid, main))
        hand_back_dead(connection)
        row = listing.one(connection, number)
        assert row is not None
        assert row["state"] == "ingesting", (
            "a living process keeps its lease, and a living worker reports the death of its own process"
        )


def test_folder_that_a_worker_cannot_read_is_left_to_others(system: System, database_url: str) -> None:
    (system.folder / "a.txt").write_text("The heron stands still.")
    system.start("web", "worker", "producer")
    until(lambda: system.search("heron"))
    away = system.folder.with_name("away")
    system.folder.rename(away)
    until(lambda: "its documents wait" in system.log("worker"))
    with psycopg.connect(database_url, autocommit=True) as connection:
        until(lambda: connection.execute("SELECT roots FROM askfolder.worker").fetchone() == ([],))
    away.rename(system.folder)
    until(lambda: "are ingested again" in system.log("worker"))
    (system.folder / "b.txt").write_text("The stork stands still.")
    until(lambda: system.search("stork") and [r for r in system.search("stork") if r["source"] == "b.txt"])


def test_a_redis_that_may_evict_the_queue_is_refused(system: System) -> None:
    with redis.Redis.from_url(system.env["REDIS_URL"]) as client:
        client.config_set("maxmemory", "1gb")
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            system.start("worker")
            until(lambda: system.processes["worker"].poll() is not None)
        finally:
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("maxmemory", "0")
    assert "may evict the queue (maxmemory-policy allkeys-lru): set it to noeviction" in system.log("worker")
    assert "Traceback" not in system.log("worker")


def test_a_task_over_its_time_limit_continues_later_at_the_same_place(system: System, database_url: str) -> None:
    """Send the signal of Celery's time limit in the middle of a document."""
    (system.folder / "a.txt").write_text("\n".join(f"Line {n} tells of heron number {n * 7919}." for n in range(3000)))
    with OpenAIStandin(delay=0.8) as openai:
        system.env |= {"ASKFOLDER_EMBEDDER": "openai", "OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": openai.url}
        system.start("web", "worker", "producer")
        with psycopg.connect(database_url, autocommit=True) as connection:
            worker = until(lambda: holder(connection, set()))
            until(lambda: len(openai.requests) >= 2, pause=0.01)
            os.kill(int(worker.rpartition(":")[2]), signal.SIGUSR1)
            row = until(lambda: (d := system.documents()["a.txt"])["error"] and d)
            assert "reached the time limit of one attempt" in row["error"]
            assert row["attempts"] == 0
        openai.delay = 0
        assert system.settled(1, 60)["a.txt"]["state"] == "ready"
        texts = [text for request in openai.requests for text in request["body"]["input"]]
        largest = max(len(request["body"]["input"]) for request in openai.requests)
        assert len(texts) - len(set(texts)) <= largest
