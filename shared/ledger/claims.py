"""Claims: the lease of a document, from `claim` to `ready` or `failed`."""

import json
import uuid
from dataclasses import dataclass

from psycopg.rows import class_row

from shared.db import Connection
from shared.ledger.documents import LEASE_SECONDS, MAX_ATTEMPTS, TOUCHED, UNBUILT
from shared.models import Heading, Parsed


@dataclass(frozen=True, slots=True)
class Claim:
    """A document that this worker, and no other, is working on as long as its lease lasts."""

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
    described: bool
    text_version: int
    attempts: int
    retries: int


class LostClaim(Exception):
    """The lease is gone or the wanted revision is another one: what was made is thrown away."""


# --- what a worker writes --------------------------------------------------------------------------------------------


def claim(connection: Connection, document_id: int, worker: str = "") -> Claim | None:
    """Takes a document for `worker` (its name); None when there is nothing to do or another has it. The attempt counts from here."""
    with connection.cursor(row_factory=class_row(Claim)) as cursor:
        return cursor.execute(
            f"""
            UPDATE document d SET
                state = CASE d.state WHEN 'ready' THEN 'ready' ELSE 'ingesting' END,
                attempts = d.attempts + 1, lease = gen_random_uuid(), leased_until = now() + make_interval(secs => %s), worker = %s,
                published_at = NULL, stage = CASE d.state WHEN 'ready' THEN NULL ELSE 'parsing' END,
                progress_done = NULL, progress_total = NULL, error = NULL, updated_at = now()
            FROM source s
            WHERE d.id = %s AND s.id = d.source_id
              AND (d.state = 'queued' OR (d.state = 'ingesting' AND d.leased_until < now())
                   OR ((d.leased_until IS NULL OR d.leased_until < now()) AND {UNBUILT}))
            RETURNING d.id, d.lease, d.source_id, d.collection_id, s.kind, s.root, d.key, d.state, d.wanted_revision, d.wanted_size,
                      d.live_revision, d.live_sha256, d.described, d.text_version, d.attempts, d.retries
            """,
            [LEASE_SECONDS, worker or None, document_id],
        ).fetchone()


# What is lost of these with the database's last instants is written again by the next one: nobody waits for the disk.
_QUICK = "(SELECT set_config('synchronous_commit', 'off', true)) AS quick"


def heartbeat(connection: Connection, claim: Claim) -> bool:
    """Extends the lease; False when it is no longer ours."""
    return (
        connection.execute(
            f"UPDATE document SET leased_until = now() + make_interval(secs => %s) FROM {_QUICK} WHERE id = %s AND lease = %s",
            [LEASE_SECONDS, claim.id, claim.lease],
        ).rowcount
        == 1
    )


def progress(
    connection: Connection,
    claim: Claim,
    stage: str,
    done: int | None = None,
    total: int | None = None,
    further: bool = False,
) -> None:
    """Says how far the work is, and extends the lease. Raises LostClaim when it is no longer ours.

    `further`: something was committed that the next attempt need not do again, so this one does not count against the document.
    """
    if not connection.execute(
        f"""
        UPDATE document SET stage = %s, progress_done = %s, progress_total = %s, leased_until = now() + make_interval(secs => %s),
            attempts = CASE WHEN %s THEN 0 ELSE attempts END, updated_at = now()
        FROM {_QUICK} WHERE id = %s AND lease = %s
        """,
        [stage, done, total, LEASE_SECONDS, further, claim.id, claim.lease],
    ).rowcount:
        raise LostClaim


def lock(connection: Connection, claim: Claim) -> None:
    """Locks the document for the rest of the transaction: the fence. Raises LostClaim when the lease is not ours any more.

    A newer revision, a deletion and another worker's claim all take the lease away.
    """
    if not connection.execute(
        "SELECT 1 FROM document WHERE id = %s AND lease = %s FOR UPDATE", [claim.id, claim.lease]
    ).fetchone():
        raise LostClaim


def set_text(connection: Connection, claim: Claim, parsed: Parsed, revision: str, sha256: bytes) -> int:
    """Makes a new text the live one, inside the transaction that holds the document. Returns its version."""
    row = connection.execute(
        """
        UPDATE document SET text_version = text_version + 1, live_revision = %(revision)s, wanted_revision = %(revision)s,
            live_sha256 = %(sha256)s, title = %(title)s, format = %(format)s, metadata = %(metadata)s::jsonb, described = true,
            dated = coalesce(%(dated)s, revision_time(%(revision)s), now())
        WHERE id = %(id)s RETURNING text_version
        """,
        {
            "revision": revision,
            "sha256": sha256,
            "title": parsed.title,
            "format": parsed.format,
            "metadata": json.dumps(parsed.metadata),
            "dated": parsed.dated,
            "id": claim.id,
        },
    ).fetchone()
    assert row is not None
    connection.execute(
        """
        INSERT INTO document_text (document_id, text_version, content, kind, headings, pages)
        VALUES (%s, %s, %s, %s, to_jsonb(%s::json), to_jsonb(%s::json))
        ON CONFLICT (document_id) DO UPDATE SET text_version = excluded.text_version, content = excluded.content,
            kind = excluded.kind, headings = excluded.headings, pages = excluded.pages
        """,
        [
            claim.id,
            row[0],
            parsed.text,
            parsed.kind,
            json.dumps([[h.start, h.level, h.title] for h in parsed.headings]),
            json.dumps(list(parsed.pages)),
        ],
    )
    return int(row[0])


def touch(connection: Connection, claim: Claim, revision: str) -> None:
    """The bytes are those that are live already: only the revision is another one, and the date where the file gave it."""
    connection.execute(
        f"UPDATE document SET {TOUCHED}, wanted_revision = %(revision)s, live_revision = %(revision)s WHERE id = %(id)s AND lease = %(lease)s",
        {"revision": revision, "id": claim.id, "lease": claim.lease},
    )


def text(connection: Connection, document_id: int) -> tuple[int, Parsed] | None:
    """The live text of a document with its version."""
    row = connection.execute(
        "SELECT t.text_version, t.content, d.format, t.kind, d.title, t.headings, t.pages "
        "FROM document_text t JOIN document d ON d.id = t.document_id WHERE d.id = %s",
        [document_id],
    ).fetchone()
    if row is None:
        return None
    headings = tuple(Heading(start, level, title) for start, level, title in row[5])
    return row[0], Parsed(row[1], row[2], row[3], row[4], headings, tuple((start, number) for start, number in row[6]))


def ready(connection: Connection, claim: Claim) -> None:
    """Everything of it can be found: the end of the work."""
    connection.execute(
        """
        UPDATE document SET state = 'ready', attempts = 0, retries = 0, not_before = NULL, lease = NULL, leased_until = NULL, worker = NULL,
            ready_at = now(), published_at = NULL, stage = NULL, progress_done = NULL, progress_total = NULL, error = NULL, updated_at = now()
        WHERE id = %s AND lease = %s
        """,
        [claim.id, claim.lease],
    )


def failed(connection: Connection, claim: Claim, reason: str) -> None:
    """The file can never be read as it is: what was live of it is withdrawn."""
    with connection.transaction():
        lock(connection, claim)
        connection.execute("DELETE FROM chunk WHERE document_id = %s", [claim.id])
        connection.execute("DELETE FROM document_generation WHERE document_id = %s", [claim.id])
        connection.execute("DELETE FROM document_text WHERE document_id = %s", [claim.id])
        connection.execute(
            """
            UPDATE document SET state = 'failed', error = %s, live_revision = NULL, live_sha256 = NULL, title = NULL, chunks = 0,
                metadata = '{}', described = false, dated = NULL, lease = NULL, leased_until = NULL, worker = NULL, published_at = NULL, stage = NULL, progress_done = NULL,
                progress_total = NULL, updated_at = now()
            WHERE id = %s
            """,
            [reason, claim.id],
        )


def postpone(connection: Connection, claim: Claim, reason: str, seconds: float) -> None:
    """A passing failure: the attempt does not count, what was live goes on answering, the next try is in so many seconds."""
    connection.execute(
        """
        UPDATE document SET state = CASE state WHEN 'ingesting' THEN 'queued' ELSE state END, error = %s, attempts = greatest(attempts - 1, 0),
            retries = retries + 1, not_before = now() + make_interval(secs => %s), lease = NULL, leased_until = NULL, worker = NULL,
            published_at = NULL, stage = NULL, progress_done = NULL, progress_total = NULL, updated_at = now()
        WHERE id = %s AND lease = %s
        """,
        [reason, seconds, claim.id, claim.lease],
    )


def record_crash(connection: Connection, claim: Claim, reason: str) -> None:
    """A failure that nobody foresaw: the attempt counts, and the last one sets the document aside."""
    connection.execute(
        """
        UPDATE document SET state = CASE WHEN attempts >= %s THEN 'quarantined' WHEN state = 'ingesting' THEN 'queued' ELSE state END,
            error = %s, not_before = now() + interval '5 seconds', lease = NULL, leased_until = NULL, worker = NULL, published_at = NULL,
            stage = NULL, progress_done = NULL, progress_total = NULL, updated_at = now()
        WHERE id = %s AND lease = %s
        """,
        [MAX_ATTEMPTS, reason, claim.id, claim.lease],
    )
