"""Migration of a database from before the table of leases, with documents in every state."""

from collections import Counter
from pathlib import Path

import psycopg
import pytest

from shared import db
from shared.db import Connection
from shared.ledger import claims, doctor, documents, generations, listing, sources

LAST = 7  # the last migration of the old version
# The rows of the old version: each statement writes the same columns as the old version did.
ROWS = {
    "waiting.txt": "state = 'queued', queued_at = now()",
    "published.txt": "state = 'queued', queued_at = now(), published_at = now()",
    "postponed.txt": "state = 'queued', retries = 4, not_before = now() + interval '1 hour', error = 'No answer.'",
    "parsing.txt": "state = 'ingesting', attempts = 1, lease = gen_random_uuid(),"
    " leased_until = now() + interval '45 seconds', worker = 'here:1:2', stage = 'parsing'",
    "embedding.txt": "state = 'ingesting', attempts = 0, lease = gen_random_uuid(), stage = 'embedding',"
    " progress_done = 3, progress_total = 9, leased_until = now() + interval '45 seconds', worker = 'here:1:3'",
    "died.txt": "state = 'ingesting', attempts = 3, lease = gen_random_uuid(),"
    " leased_until = now() - interval '1 hour', worker = 'gone:1:2', stage = 'storing'",
    "ready.txt": "state = 'ready', ready_at = now()",
    "rebuilt.txt": "state = 'ready', ready_at = now(), attempts = 1, lease = gen_random_uuid(), worker = 'here:1:4',"
    " leased_until = now() + interval '45 seconds'",
    "changed.txt": "state = 'ingesting', wanted_revision = '2-9', attempts = 2, lease = gen_random_uuid(),"
    " leased_until = now() + interval '45 seconds', worker = 'here:1:5', stage = 'chunking'",
    "failed.txt": "state = 'failed', error = 'It is damaged.'",
    "quarantined.txt": "state = 'quarantined', attempts = 3, error = 'It ended three workers.'",
    "deleted.txt": "state = 'deleted', deleted_at = now()",
}
LIVE = ("ready.txt", "rebuilt.txt", "changed.txt", "deleted.txt")
# State and attempts after the migration: a leased document is queued again, and the interrupted attempt does not count.
AFTER = {
    "waiting.txt": ("queued", 0),
    "published.txt": ("queued", 0),
    "postponed.txt": ("queued", 0),
    "parsing.txt": ("queued", 0),
    "embedding.txt": ("queued", 0),
    "died.txt": ("queued", 2),
    "ready.txt": ("ready", 0),
    "rebuilt.txt": ("ready", 0),
    "changed.txt": ("queued", 1),
    "failed.txt": ("failed", 0),
    "quarantined.txt": ("quarantined", 3),
    "deleted.txt": ("deleted", 0),
}


def make_live(connection: Connection, number: int) -> None:
    """Store a text with one chunk, its vector and its lexical row in the old format."""
    for statement in (
        "UPDATE document SET live_revision = '1-9', live_sha256 = '\\x01', text_version = 1, chunks = 1,"
        " format = 'text',"
        ' metadata = \'{"author": "Anna"}\', described = true, dated = now() WHERE id = %s',
        "INSERT INTO document_text VALUES (%s, 1, 'The heron.', 'text', '[]', '[]')",
        "INSERT INTO document_generation VALUES (%s, 1, 1)",
        "INSERT INTO chunk (generation_id, document_id, ordinal, content, heading_path, char_start, char_end,"
        " input_hash) VALUES (1, %s, 0, 'The heron.', '{}', 0, 10, '\\x02')",
        "INSERT INTO vector_1 SELECT id, document_id, 1, '[1,0,0]' FROM chunk WHERE document_id = %s",
        "INSERT INTO lexical_1 SELECT id, document_id, 1, bm25_chunk('english', content, '{}', 10) FROM chunk"
        " WHERE document_id = %s",
    ):
        connection.execute(statement, [number])


@pytest.fixture
def old_url(database_url: str, tmp_path: Path) -> str:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA askfolder CASCADE")
    for path in db.MIGRATIONS.glob("*.sql"):
        if int(path.name[:4]) <= LAST:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    assert len(db.migrate(database_url, tmp_path)) == LAST
    with db.connect(database_url) as connection:
        generations.want(connection, "local", "model", "", 3, "1/200/28", "1")
        source = sources.source(connection, "folder", "/somewhere")
        for key, written in ROWS.items():
            number = db.value(
                connection,
                "INSERT INTO document (source_id, collection_id, key, state, wanted_revision, wanted_size)"
                " VALUES (%s, 1, %s, 'queued', '1-9', 9) RETURNING id",
                [source, key],
            )
            if key in LIVE:
                make_live(connection, number)
            connection.execute(f"UPDATE document SET {written}, updated_at = now() WHERE id = %s", [number])
    return database_url


def test_a_database_of_the_previous_version_is_migrated(old_url: str) -> None:
    assert db.migrate(old_url)[0] == "0008_task.sql"
    with db.connect(old_url) as connection:
        rows = connection.execute("SELECT key, state, attempts FROM document").fetchall()
        assert {key: (state, attempts) for key, state, attempts in rows} == AFTER
        assert listing.counts(connection) == Counter(state for state, _ in AFTER.values() if state != "deleted")
        assert doctor.examine(connection) == []
        assert documents.in_flight(connection) == []
        shown = {row["source"]: row for row in listing.listed(connection, 100)}
        assert [key for key, row in shown.items() if row["answers"]] == ["ready.txt", "rebuilt.txt", "changed.txt"]
        assert all(row["stage"] is None and row["progress"] is None for row in shown.values())
        assert shown["failed.txt"]["error"] == "It is damaged."
        known = documents.known(connection, 1)
        assert known["ready.txt"].metadata_read
        assert not known["waiting.txt"].metadata_read
        due = documents.due(connection, [1], 100)
        assert {row.key for row in due} == {key for key, (s, _) in AFTER.items() if s == "queued"} - {"postponed.txt"}
        documents.published(connection, [row.id for row in due])
        for row in due:
            claim = claims.claim(connection, row.id, "new:1:1")
            assert claim
            assert claim.attempts == AFTER[row.key][1] + 1
            claims.progress(connection, claim, "embedding", 1, 2)
        assert len(documents.in_flight(connection)) == len(due)
        assert doctor.examine(connection) == []


def test_a_worker_of_the_previous_version_fails_and_changes_nothing(old_url: str) -> None:
    with db.connect(old_url) as worker:
        (lease,) = worker.execute("SELECT lease FROM document WHERE key = 'embedding.txt'").fetchone() or (None,)
        db.migrate(old_url)
        for statement in (
            "UPDATE document SET leased_until = now() WHERE lease = %s",
            "SELECT 1 FROM document WHERE lease = %s FOR UPDATE",
            "UPDATE document SET state = 'ready', lease = NULL WHERE lease = %s",
        ):
            with pytest.raises(psycopg.errors.UndefinedColumn):
                worker.execute(statement, [lease])
        assert db.value(worker, "SELECT state FROM document WHERE key = 'embedding.txt'") == "queued"
