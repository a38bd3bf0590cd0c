"""Claims: a worker's lease of a document, from `claim` to `ready`, `failed`, `postpone` or `record_crash`."""

import json
import uuid
from dataclasses import dataclass

from psycopg import sql

from shared import db
from shared.db import Connection
from shared.ledger.documents import LEASE_SECONDS, MAX_ATTEMPTS, NEW_REVISION, UNBUILT, end_tasks
from shared.models import Heading, Parsed


@dataclass(frozen=True, slots=True)
class Claim:
    """A document leased to one worker by the token `lease`. `state`: 'ready' if only another generation lacks it."""

    id: int
    lease: uuid.UUID
    source_id: int
    collection_id: int
    kind: str
    root: str
    key: str
    state: str
    wanted_revision: str
    wanted_size: int
    live_revision: str | None
    live_sha256: bytes | None
    metadata_read: bool
    text_version: int
    attempts: int
    retries: int


class LostClaim(Exception):
    """The lease ended or the wanted revision changed: discard the work."""


_CLAIM = sql.SQL("""
    WITH taken AS (
        INSERT INTO task AS t (document_id, lease, leased_until, worker, stage)
        SELECT d.id, gen_random_uuid(), now() + make_interval(secs => %(seconds)s), %(worker)s,
               CASE d.state WHEN 'ready' THEN NULL ELSE 'parsing' END
        FROM document d WHERE d.id = %(id)s AND (d.state IN ('queued', 'ingesting') OR ({}))
        ON CONFLICT (document_id) DO UPDATE SET lease = excluded.lease, leased_until = excluded.leased_until,
            worker = excluded.worker, stage = excluded.stage, done = NULL, total = NULL
        WHERE t.lease IS NULL OR t.leased_until < now()
        RETURNING document_id, lease
    )
    UPDATE document d SET state = CASE d.state WHEN 'ready' THEN 'ready' ELSE 'ingesting' END,
        attempts = d.attempts + 1, error = NULL, updated_at = now()
    FROM taken, source s WHERE d.id = taken.document_id AND s.id = d.source_id
    RETURNING d.id, taken.lease, d.source_id, d.collection_id, s.kind, s.root, d.key, d.state, d.wanted_revision,
        d.wanted_size, d.live_revision, d.live_sha256, d.metadata_read, d.text_version, d.attempts, d.retries
""").format(UNBUILT)


def claim(connection: Connection, document_id: int, worker: str = "") -> Claim | None:
    """Lease a document to a worker and count the attempt. Return None if another worker holds it or it is done."""
    with connection.transaction():
        connection.execute("SELECT 1 FROM document WHERE id = %s FOR UPDATE", [document_id])
        parameters = {"id": document_id, "seconds": LEASE_SECONDS, "worker": worker or None}
        return next(iter(db.rows(connection, Claim, _CLAIM, parameters)), None)


# `quick`: do not wait for the disk. What a crash of the database loses, the next statement writes again.


def heartbeat(connection: Connection, claim: Claim) -> bool:
    """Extend the lease. Return False if it is lost."""
    statement = """
        UPDATE task SET leased_until = now() + make_interval(secs => %s)
        FROM (SELECT set_config('synchronous_commit', 'off', true)) AS quick WHERE document_id = %s AND lease = %s
    """
    return connection.execute(statement, [LEASE_SECONDS, claim.id, claim.lease]).rowcount == 1


def progress(
    connection: Connection,
    claim: Claim,
    stage: str,
    done: int | None = None,
    total: int | None = None,
    further: bool = False,
) -> None:
    """Record the stage and extend the lease. Raise LostClaim if the lease is lost.

    `further`: work was committed that the next attempt need not repeat, so this attempt does not count.
    """
    if further:
        forgive = """
            UPDATE document SET attempts = 0
            FROM (SELECT set_config('synchronous_commit', 'off', true)) AS quick, (
                SELECT d.id FROM document d JOIN task t ON t.document_id = d.id
                WHERE d.id = %s AND t.lease = %s AND d.attempts > 0 FOR UPDATE
            ) AS held WHERE document.id = held.id
        """
        connection.execute(forgive, [claim.id, claim.lease])
    statement = """
        UPDATE task SET stage = %s, done = %s, total = %s, leased_until = now() + make_interval(secs => %s),
            updated_at = now()
        FROM (SELECT set_config('synchronous_commit', 'off', true)) AS quick WHERE document_id = %s AND lease = %s
    """
    if not connection.execute(statement, [stage, done, total, LEASE_SECONDS, claim.id, claim.lease]).rowcount:
        raise LostClaim


def lock(connection: Connection, claim: Claim) -> None:
    """Lock the document for the rest of the transaction: the fence. Raise LostClaim if the lease is lost.

    A newer revision, a deletion and another worker's claim all end the lease.
    """
    fence = "SELECT 1 FROM document d JOIN task t ON t.document_id = d.id WHERE d.id = %s AND t.lease = %s FOR UPDATE"
    if not connection.execute(fence, [claim.id, claim.lease]).fetchone():
        raise LostClaim


def set_text(connection: Connection, claim: Claim, parsed: Parsed, revision: str, sha256: bytes) -> int:
    """Make a new text the live one, inside the transaction that locked the document. Return the text's version."""
    update = """
        UPDATE document SET text_version = text_version + 1, live_revision = %(revision)s,
            wanted_revision = %(revision)s, live_sha256 = %(sha256)s, title = %(title)s, format = %(format)s,
            metadata = %(metadata)s::jsonb, metadata_read = true,
            dated = coalesce(%(dated)s, revision_time(%(revision)s), now())
        WHERE id = %(id)s RETURNING text_version
    """
    document = {"id": claim.id, "revision": revision, "sha256": sha256, "metadata": json.dumps(parsed.metadata)}
    document |= {"title": parsed.title, "format": parsed.format, "dated": parsed.dated}
    version = int(db.value(connection, update, document))
    headings = json.dumps([[h.start, h.level, h.title] for h in parsed.headings])
    connection.execute(
        """
        INSERT INTO document_text (document_id, text_version, content, kind, headings, pages)
        VALUES (%s, %s, %s, %s, to_jsonb(%s::json), to_jsonb(%s::json))
        ON CONFLICT (document_id) DO UPDATE SET text_version = excluded.text_version, content = excluded.content,
            kind = excluded.kind, headings = excluded.headings, pages = excluded.pages
        """,
        [claim.id, version, parsed.text, parsed.kind, headings, json.dumps(list(parsed.pages))],
    )
    return version


def touch(connection: Connection, claim: Claim, revision: str) -> None:
    """Record a new revision of the content that is live already. Raise LostClaim if the lease is lost."""
    with connection.transaction():
        lock(connection, claim)
        where = sql.SQL("WHERE id = %(id)s")
        connection.execute(NEW_REVISION + where, {"revision": revision, "id": claim.id})


def text(connection: Connection, document_id: int) -> tuple[int, Parsed] | None:
    """Return the live text of a document and its version."""
    row = connection.execute(
        "SELECT t.text_version, t.content, d.format, t.kind, d.title, t.headings, t.pages "
        "FROM document_text t JOIN document d ON d.id = t.document_id WHERE d.id = %s",
        [document_id],
    ).fetchone()
    if row is None:
        return None
    headings = tuple(Heading(start, level, title) for start, level, title in row[5])
    return row[0], Parsed(row[1], row[2], row[3], row[4], headings, tuple((start, number) for start, number in row[6]))


# --- the ends of a claim: nothing changes if the lease is lost -------------------------------------------------------


def _end(connection: Connection, claim: Claim, changes: sql.SQL, **parameters: object) -> None:
    which = sql.SQL("d.id = %(id)s AND t.lease = %(lease)s")
    end_tasks(connection, which, changes, {"id": claim.id, "lease": claim.lease} | parameters)


def ready(connection: Connection, claim: Claim) -> None:
    """End the work: every part of the document can be found."""
    changes = sql.SQL("state = 'ready', attempts = 0, retries = 0, not_before = NULL, ready_at = now(), error = NULL")
    _end(connection, claim, changes)


def failed(connection: Connection, claim: Claim, reason: str) -> None:
    """Fail a file that cannot be read as it is, and remove its previous text from the index. Raise LostClaim."""
    with connection.transaction():
        lock(connection, claim)
        connection.execute("DELETE FROM chunk WHERE document_id = %s", [claim.id])
        connection.execute("DELETE FROM document_generation WHERE document_id = %s", [claim.id])
        connection.execute("DELETE FROM document_text WHERE document_id = %s", [claim.id])
        changes = sql.SQL("""state = 'failed', error = %(reason)s, live_revision = NULL, live_sha256 = NULL,
            title = NULL, chunks = 0, metadata = '{}', metadata_read = false, dated = NULL""")
        _end(connection, claim, changes, reason=reason)


def postpone(connection: Connection, claim: Claim, reason: str, seconds: float) -> None:
    """Record a transient failure: the attempt does not count, the live text answers, the next try is in `seconds`."""
    changes = sql.SQL("""state = CASE d.state WHEN 'ingesting' THEN 'queued' ELSE d.state END, error = %(reason)s,
        attempts = greatest(d.attempts - 1, 0), retries = d.retries + 1,
        not_before = now() + make_interval(secs => %(seconds)s)""")
    _end(connection, claim, changes, reason=reason, seconds=seconds)


def record_crash(connection: Connection, claim: Claim, reason: str) -> None:
    """Record an unexpected error: the attempt counts, and the last one quarantines the document."""
    changes = sql.SQL("""state = CASE WHEN d.attempts >= %(most)s THEN 'quarantined'
        WHEN d.state = 'ingesting' THEN 'queued' ELSE d.state END, error = %(reason)s,
        not_before = now() + interval '5 seconds'""")
    _end(connection, claim, changes, reason=reason, most=MAX_ATTEMPTS)
