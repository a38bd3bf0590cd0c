"""The ledger: claims, fences, failures, sweeps."""

from datetime import timedelta

import pytest

from shared.db import Connection
from shared.ledger import claims, documents, generations, listing, sources
from shared.ledger.claims import Claim, LostClaim
from shared.models import Parsed

PARSED = Parsed("Some text.", "text", "text")


@pytest.fixture
def source(connection: Connection) -> int:
    return sources.source(connection, "folder", "/somewhere")


def only(connection: Connection) -> dict[str, object]:
    (row,) = listing.listed(connection, 10)
    return row


def taken(connection: Connection, source: int, key: str = "a.txt", revision: str = "1-5") -> Claim:
    documents.enqueue(connection, source, [(key, revision, 5)])
    row = connection.execute("SELECT id FROM document WHERE key = %s", [key]).fetchone()
    assert row is not None
    claim = claims.claim(connection, row[0])
    assert claim is not None
    return claim


def finish(connection: Connection, claim: Claim, sha256: bytes = b"x") -> None:
    with connection.transaction():
        claims.lock(connection, claim)
        claims.set_text(connection, claim, PARSED, claim.wanted_revision, sha256)
        claims.ready(connection, claim)


def test_only_one_worker_gets_a_document(connection: Connection, source: int) -> None:
    claim = taken(connection, source)
    assert claims.claim(connection, claim.id) is None
    assert claim.attempts == 1
    finish(connection, claim)
    assert only(connection)["state"] == "ready"
    assert claims.claim(connection, claim.id) is None, "nothing is left to do"
    assert claims.text(connection, claim.id) == (1, PARSED)


def test_a_newer_revision_wins_over_a_worker_with_the_older_one(connection: Connection, source: int) -> None:
    old = taken(connection, source)
    new = taken(connection, source, revision="2-5")
    with pytest.raises(LostClaim):
        finish(connection, old)
    with pytest.raises(LostClaim):
        claims.progress(connection, old, "embedding", 1, 2)
    assert not claims.heartbeat(connection, old)
    claims.postpone(connection, old, "too late", 60)
    claims.record_crash(connection, old, "too late")
    with pytest.raises(LostClaim):
        claims.failed(connection, old, "too late")
    finish(connection, new)
    assert only(connection)["error"] is None


def test_a_document_is_deleted_during_its_ingestion(connection: Connection, source: int) -> None:
    claim = taken(connection, source)
    documents.delete(connection, [claim.id])
    with pytest.raises(LostClaim):
        finish(connection, claim)
    assert listing.listed(connection, 10) == []


def test_three_dead_workers_quarantine_a_document(connection: Connection, source: int) -> None:
    claim = taken(connection, source)
    for attempt in (1, 2, 3):
        assert claim.attempts == attempt
        connection.execute("UPDATE task SET leased_until = now() - interval '1 second'")
        documents.sweep(connection)
        again = claims.claim(connection, claim.id)
        if attempt == 3:
            assert again is None
            break
        assert again is not None
        claim = again
    row = only(connection)
    assert row["state"] == "quarantined"
    assert "a.txt" in str(row["error"])
    assert "retry" in str(row["error"])
    assert documents.retry(connection) == 1
    assert only(connection)["state"] == "queued"


def test_temporary_failures_never_use_up_the_attempts(connection: Connection, source: int) -> None:
    claim = taken(connection, source)
    for _ in range(10):
        claims.postpone(connection, claim, "The provider is away.", 30)
        assert documents.due(connection, [source], 10) == [], "not before its time"
        connection.execute("UPDATE document SET not_before = now()")
        again = claims.claim(connection, claim.id)
        assert again is not None
        claim = again
    assert claim.attempts == 1
    assert claim.retries == 10


def test_unexpected_failures_use_up_the_attempts(connection: Connection, source: int) -> None:
    claim = taken(connection, source)
    for _ in range(2):
        claims.record_crash(connection, claim, "An error.")
        again = claims.claim(connection, claim.id)
        assert again is not None
        claim = again
    claims.record_crash(connection, claim, "An error.")
    assert only(connection)["state"] == "quarantined"


def test_a_lost_task_is_published_again(connection: Connection, source: int) -> None:
    documents.enqueue(connection, source, [("a.txt", "1-5", 5)])
    (due,) = documents.due(connection, [source], 10)
    documents.published(connection, [due.id])
    documents.sweep(connection)
    assert documents.due(connection, [source], 10) == []
    connection.execute(
        "UPDATE task SET published_at = now() - make_interval(secs => %s)", [documents.REPUBLISH_SECONDS + 1]
    )
    documents.sweep(connection)
    assert documents.due(connection, [source], 10) == [due]


def test_changed_and_small_documents_of_these_sources_are_due_first(connection: Connection, source: int) -> None:
    claim = taken(connection, source, "changed.txt")
    finish(connection, claim)
    documents.enqueue(
        connection, source, [("big.txt", "1-900", 900), ("small.txt", "1-1", 1), ("changed.txt", "2-800", 800)]
    )
    other = sources.source(connection, "folder", "/elsewhere")
    documents.enqueue(connection, other, [("foreign.txt", "1-1", 1)])
    assert [d.key for d in documents.due(connection, [source], 10)] == ["changed.txt", "small.txt", "big.txt"]


def test_a_small_document_is_due_despite_many_large_ones(connection: Connection, source: int) -> None:
    keys = [f"large{n}.txt" for n in range(40)]
    for key in keys:
        finish(connection, taken(connection, source, key))
    documents.enqueue(connection, source, [(key, "2-99999", 99_999) for key in keys])  # changed documents come first
    documents.enqueue(connection, source, [("note.txt", "1-5", 5)], bulk=True)
    assert [d.key for d in documents.due(connection, [source], 10)] == ["note.txt"]
    assert len(documents.due(connection, [source], 10, large=True)) == 10


def test_a_permanent_failure_withdraws_the_document(connection: Connection, source: int) -> None:
    finish(connection, taken(connection, source))
    claim = taken(connection, source, revision="2-5")
    claims.failed(connection, claim, "It is broken.")
    row = only(connection)
    assert (row["state"], row["error"], row["answers"]) == ("failed", "It is broken.", False)
    assert claims.text(connection, claim.id) is None


def test_an_unchanged_restored_file_is_ready_at_once(connection: Connection, source: int) -> None:
    claim = taken(connection, source)
    finish(connection, claim)
    documents.delete(connection, [claim.id])
    documents.enqueue(connection, source, [("a.txt", "1-5", 5)])
    assert only(connection)["state"] == "ready"


def test_a_purge_waits_for_its_delay(connection: Connection, source: int) -> None:
    claim = taken(connection, source)
    finish(connection, claim)
    documents.delete(connection, [claim.id])
    assert documents.purge(connection) == 0
    connection.execute("UPDATE document SET deleted_at = now() - %s", [timedelta(seconds=documents.PURGE_SECONDS + 1)])
    assert documents.purge(connection) == 1
    assert connection.execute("SELECT count(*) FROM document_text").fetchone() == (0,)


def test_a_purge_deletes_unused_vectors(connection: Connection, source: int) -> None:
    generations.want(connection, "local", "model", "", 3, "1/200/28", "1")
    for key in ("a.txt", "b.txt"):
        claim = taken(connection, source, key)
        finish(connection, claim)
        for ordinal, digest in enumerate((b"shared", key.encode())):
            connection.execute(
                "INSERT INTO chunk (generation_id, document_id, ordinal, content, heading_path, char_start, char_end, "
                "input_hash) VALUES (1, %s, %s, 'x', '{}', 0, 1, %s)",
                [claim.id, ordinal, digest],
            )
            connection.execute(
                "INSERT INTO vector_cache VALUES (%s, 'model', 3, %s, '[1,0,0]') ON CONFLICT DO NOTHING",
                [claim.collection_id, digest],
            )
    documents.delete(connection, [claim.id])
    connection.execute("UPDATE document SET deleted_at = deleted_at - interval '1 day'")
    assert documents.purge(connection) == 1
    left = {bytes(row[0]) for row in connection.execute("SELECT input_hash FROM vector_cache")}
    assert left == {b"shared", b"a.txt"}


def test_a_generation_is_switched_only_when_it_is_complete(connection: Connection, source: int) -> None:
    key = ("model", "", 8, "1/200/28", "1")
    assert generations.want(connection, "local", *key) == "live"
    claim = taken(connection, source)
    finish(connection, claim)
    assert generations.want(connection, "openai", *key) == "building"
    assert generations.promote_when_whole(connection) is None
    assert generations.building(connection) == {"embedder": "openai", "model": "model", "missing": 1}
    (due,) = documents.due(connection, [source], 10)
    again = claims.claim(connection, due.id)
    assert again is not None
    assert again.state == "ready", "it goes on answering meanwhile"
    building = generations.active(connection)[1]
    connection.execute("INSERT INTO document_generation VALUES (%s, %s, 1)", [claim.id, building.id])
    switched = generations.promote_when_whole(connection)
    assert switched is not None
    assert switched.embedder == "openai"
    assert generations.want(connection, "openai", *key) == "live"
