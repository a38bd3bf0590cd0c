"""Claims under concurrency: one holder, no deadlock, and heartbeats that touch no index."""

import threading
import time
from collections.abc import Callable

import psycopg
import pytest

from shared import db
from shared.db import Connection
from shared.ledger import claims, documents, sources
from shared.ledger.claims import Claim, LostClaim
from shared.models import Parsed

PARSED = Parsed("Some text.", "text", "text")


@pytest.fixture
def source(connection: Connection) -> int:
    return sources.source(connection, "folder", "/somewhere")


def queued(connection: Connection, source: int, count: int, revision: str = "1-5") -> list[int]:
    documents.enqueue(connection, source, [(f"{number}.txt", revision, 5) for number in range(count)])
    return [number for (number,) in connection.execute("SELECT id FROM document ORDER BY id")]


def in_threads(count: int, url: str, run: Callable[[int, Connection], None]) -> None:
    """Call `run` in threads, each with its own connection. Raise the first error."""
    errors: list[BaseException] = []

    def call(number: int) -> None:
        try:
            with db.connect(url) as connection:
                run(number, connection)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=call, args=[number]) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("expired", [False, True])
def test_one_of_many_workers_gets_a_document(
    connection: Connection, database_url: str, source: int, expired: bool
) -> None:
    ids = queued(connection, source, 20)
    if expired:
        for number in ids:
            assert claims.claim(connection, number)
        connection.execute("UPDATE task SET leased_until = now() - interval '1 second'")
    together, got = threading.Barrier(8), list[Claim]()

    def take(_: int, mine: Connection) -> None:
        for number in ids:
            together.wait()
            if claim := claims.claim(mine, number):
                got.append(claim)

    in_threads(8, database_url, take)
    assert sorted(claim.id for claim in got) == ids


def test_newer_revision_waits_for_the_fence(connection: Connection, database_url: str, source: int) -> None:
    (number,) = queued(connection, source, 1)
    claim = claims.claim(connection, number)
    assert claim
    with db.connect(database_url) as other:
        waiting = threading.Thread(target=queued, args=[other, source, 1, "2-5"])
        with connection.transaction():
            claims.lock(connection, claim)
            waiting.start()
            while not connection.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchone():
                time.sleep(0.01)
            claims.set_text(connection, claim, PARSED, "1-5", b"x")
            claims.ready(connection, claim)
        waiting.join()
    row = connection.execute("SELECT state, wanted_revision, live_revision FROM document").fetchone()
    assert row == ("queued", "2-5", "1-5")


def test_workers_producer_and_sweeps_never_deadlock(connection: Connection, database_url: str, source: int) -> None:
    ids = queued(connection, source, 3)
    deadline, claimed = time.monotonic() + 3, []

    def work(thread: int, mine: Connection) -> None:
        turn = 0
        while time.monotonic() < deadline:
            turn += 1
            number = ids[(turn + thread) % len(ids)]
            if thread == 0:
                queued(mine, source, 3, f"{turn}-5")
            elif thread == 1:
                documents.published(mine, [due.id for due in documents.due(mine, [source], 2)])
                documents.sweep(mine, 0)
                documents.hand_back(mine, [f"worker:{2 + turn % 4}"], None)
            elif claim := claims.claim(mine, number, f"worker:{thread}"):
                claimed.append(claim)
                try:
                    claims.progress(mine, claim, "embedding", 1, 2, further=True)
                    claims.heartbeat(mine, claim)
                    with mine.transaction():
                        claims.lock(mine, claim)
                        claims.set_text(mine, claim, PARSED, claim.wanted_revision, b"x")
                        claims.ready(mine, claim)
                except LostClaim:
                    claims.postpone(mine, claim, "too late", 0)

    try:
        in_threads(6, database_url, work)
    except psycopg.errors.DeadlockDetected as error:
        pytest.fail(f"{error}")
    assert claimed


def test_heartbeat_and_progress_write_no_index(connection: Connection, database_url: str, source: int) -> None:
    (number,) = queued(connection, source, 1)
    claim = claims.claim(connection, number)
    assert claim
    for turn in range(200):
        assert claims.heartbeat(connection, claim)
        claims.progress(connection, claim, "embedding", turn, 200, further=True)
    connection.execute("SELECT pg_stat_force_next_flush()")
    with db.connect(database_url) as other:
        updates, hot = other.execute(
            "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'task'"
        ).fetchone() or (0, 0)
        of_documents = other.execute("SELECT n_tup_upd FROM pg_stat_user_tables WHERE relname = 'document'").fetchone()
    assert updates == 400
    assert hot >= 0.95 * updates
    assert of_documents == (2,), "the claim, and the first progress, which clears the attempts"
