"""The ledger: one row per (source, key), the record of what is wanted, what is live, and what is being done.

A connection is the first argument of every function; each is one statement or one transaction.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from psycopg.rows import class_row

from shared.db import Connection

LEASE_SECONDS = 45.0
HEARTBEAT_SECONDS = 10.0
MAX_ATTEMPTS = 3
REPUBLISH_SECONDS = 30.0  # a task that nobody took for so long was lost with the queue, whatever the queue says
PURGE_SECONDS = 3600.0


# --- what the producer writes ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """What the ledger knows of a key."""

    id: int
    key: str
    state: str
    wanted_revision: str
    wanted_size: int
    live_revision: str | None
    live_sha256: bytes | None
    described: bool


_KNOWN = "SELECT d.id, d.key, d.state, d.wanted_revision, d.wanted_size, d.live_revision, d.live_sha256, d.described FROM document d"


def known(connection: Connection, source_id: int, below: Iterable[str] | None = None) -> dict[str, LedgerRow]:
    """The ledger's rows of a source by key; `below`: only these keys and what lies in folders of these names."""
    with connection.cursor(row_factory=class_row(LedgerRow)) as cursor:
        if below is None:
            rows = cursor.execute(_KNOWN + " WHERE source_id = %s", [source_id]).fetchall()
        else:
            rows = cursor.execute(
                f"""
                SELECT found.* FROM unnest(%(below)s::text[]) AS p, LATERAL (
                    {_KNOWN} WHERE source_id = %(source)s AND key COLLATE "C" = p
                    UNION ALL
                    {_KNOWN} WHERE source_id = %(source)s AND key COLLATE "C" > p || '/' AND key COLLATE "C" < p || '0'
                ) AS found
                """,  # '0' comes after '/'
                {"source": source_id, "below": list(below)},
            ).fetchall()
    return {row.key: row for row in rows}


def total(connection: Connection, source_id: int) -> int:
    """How many documents a source has, deleted ones not counted."""
    row = connection.execute(
        "SELECT count(*) FROM document WHERE source_id = %s AND state <> 'deleted'", [source_id]
    ).fetchone()
    assert row is not None
    return int(row[0])


def same_size(connection: Connection, source_id: int, sizes: Iterable[int]) -> dict[int, list[LedgerRow]]:
    """Documents that are live, deleted ones too, by their size where it is one of these: candidates for having been renamed."""
    with connection.cursor(row_factory=class_row(LedgerRow)) as cursor:
        rows = cursor.execute(
            _KNOWN + " WHERE source_id = %s AND live_sha256 IS NOT NULL AND wanted_size = ANY(%s)",
            [source_id, list(sizes)],
        ).fetchall()
    found: dict[int, list[LedgerRow]] = {}
    for row in rows:
        found.setdefault(row.wanted_size, []).append(row)
    return found


def enqueue(connection: Connection, source_id: int, found: Sequence[tuple[str, str, int]], bulk: bool = False) -> None:
    """Queues new and changed keys: (key, revision, size in bytes). A worker that holds an older revision loses its claim.

    `bulk`: they came in a crowd, and let pass by what is dropped alone.
    """
    connection.execute(
        """
        INSERT INTO document (source_id, collection_id, key, state, wanted_revision, wanted_size, bulk, queued_at)
        SELECT s.id, s.collection_id, f.key, 'queued', f.revision, f.size, %s, now()
        FROM source s, unnest(%s::text[], %s::text[], %s::bigint[]) AS f(key, revision, size) WHERE s.id = %s
        ON CONFLICT (source_id, key) DO UPDATE SET
            state = CASE WHEN document.state = 'excluded' THEN 'excluded'
                         WHEN document.live_revision = excluded.wanted_revision THEN 'ready' ELSE 'queued' END,
            wanted_revision = excluded.wanted_revision, wanted_size = excluded.wanted_size, bulk = excluded.bulk, queued_at = now(),
            attempts = 0, retries = 0, not_before = NULL, published_at = NULL, lease = NULL, leased_until = NULL, worker = NULL,
            stage = NULL, progress_done = NULL, progress_total = NULL, error = NULL, deleted_at = NULL, updated_at = now()
        """,
        [bulk, *([row[column] for row in found] for column in range(3)), source_id],
    )


def rebuild(connection: Connection, ids: Iterable[int]) -> int:
    """Has documents read again as if they were new; what is live of them answers until then. Returns how many."""
    return connection.execute(
        """
        UPDATE document SET state = 'queued', live_sha256 = NULL, attempts = 0, retries = 0, not_before = NULL, published_at = NULL,
            lease = NULL, leased_until = NULL, worker = NULL, stage = NULL, progress_done = NULL, progress_total = NULL, error = NULL,
            bulk = true, queued_at = now(), updated_at = now()
        WHERE id = ANY(%s) AND state NOT IN ('deleted', 'excluded')
        """,
        [list(ids)],
    ).rowcount


# A date that came from the file goes with it; the document's own stays.
TOUCHED = """
    dated = CASE WHEN dated IS DISTINCT FROM revision_time(live_revision) THEN dated ELSE coalesce(revision_time(%(revision)s), dated) END
"""


def move(connection: Connection, document_id: int, key: str, revision: str) -> None:
    """Gives a document its new name; what was embedded stays (the name is in no embedding)."""
    connection.execute(
        f"""
        UPDATE document SET {TOUCHED}, key = %(key)s, wanted_revision = %(revision)s, live_revision = %(revision)s,
            state = CASE state WHEN 'excluded' THEN state ELSE 'ready' END, attempts = 0, retries = 0, not_before = NULL, published_at = NULL, lease = NULL, leased_until = NULL, worker = NULL,
            stage = NULL, progress_done = NULL, progress_total = NULL, error = NULL, deleted_at = NULL, updated_at = now()
        WHERE id = %(id)s
        """,
        {"key": key, "revision": revision, "id": document_id},
    )


def delete(connection: Connection, ids: Iterable[int]) -> None:
    """Takes documents out of every answer at once; they are purged later."""
    connection.execute(
        "UPDATE document SET state = 'deleted', deleted_at = now(), lease = NULL, leased_until = NULL, worker = NULL, published_at = NULL, "
        "stage = NULL, error = NULL, updated_at = now() WHERE id = ANY(%s) AND state <> 'deleted'",
        [list(ids)],
    )


@dataclass(frozen=True, slots=True)
class Due:
    id: int
    source_id: int
    key: str
    size: int


UNBUILT = """
    d.state = 'ready' AND (SELECT id FROM generation WHERE state = 'building') IS NOT NULL AND NOT EXISTS (
        SELECT 1 FROM document_generation h
        WHERE h.document_id = d.id AND h.generation_id = (SELECT id FROM generation WHERE state = 'building')
          AND h.text_version = d.text_version)
"""


def due(connection: Connection, source_ids: list[int], limit: int, large: bool = False) -> list[Due]:
    """What to publish next, of the small documents or of the large ones (over 16,000 bytes: seconds of embedding).

    Single drops, changed and small documents first; then what a building generation lacks, of any source.
    """
    with connection.cursor(row_factory=class_row(Due)) as cursor:
        queued = cursor.execute(
            """
            SELECT id, source_id, key, wanted_size AS size FROM document d
            WHERE state = 'queued' AND published_at IS NULL AND large = %s AND source_id = ANY(%s)
              AND (not_before IS NULL OR not_before <= now())
            ORDER BY bulk, live_revision IS NULL, wanted_size, id LIMIT %s
            """,
            [large, source_ids, limit],
        ).fetchall()
        building = connection.execute("SELECT 1 FROM generation WHERE state = 'building'").fetchone()
        if len(queued) == limit or building is None:
            return queued
        return (
            queued
            + cursor.execute(
                f"""
            SELECT id, source_id, key, wanted_size AS size FROM document d
            WHERE {UNBUILT} AND large = %s AND published_at IS NULL AND (leased_until IS NULL OR leased_until < now())
              AND (not_before IS NULL OR not_before <= now())
            ORDER BY wanted_size, id LIMIT %s
            """,
                [large, limit - len(queued)],
            ).fetchall()
        )


def in_flight(connection: Connection) -> list[tuple[int, bool, bool]]:
    """Published or leased documents: (size in bytes, it is large, a worker has taken it)."""
    return connection.execute(
        "SELECT wanted_size, large, coalesce(leased_until > now(), false) FROM document "
        "WHERE (published_at IS NOT NULL OR leased_until > now()) AND state IN ('queued', 'ingesting', 'ready')"
    ).fetchall()


def published(connection: Connection, ids: list[int]) -> None:
    """Written before the tasks are sent: a task that is lost comes again after REPUBLISH_SECONDS."""
    connection.execute("UPDATE document SET published_at = now() WHERE id = ANY(%s)", [ids])


def unpublished(connection: Connection, ids: list[int]) -> None:
    """They could not be sent after all."""
    connection.execute("UPDATE document SET published_at = NULL WHERE id = ANY(%s)", [ids])


_PUT_BACK = """
    state = CASE state WHEN 'ingesting' THEN 'queued' ELSE state END, lease = NULL, leased_until = NULL, worker = NULL, published_at = NULL,
    stage = NULL, progress_done = NULL, progress_total = NULL, updated_at = now()
"""
_SET_ASIDE = """
    state = 'quarantined', lease = NULL, leased_until = NULL, worker = NULL, published_at = NULL, stage = NULL, progress_done = NULL,
    progress_total = NULL, updated_at = now(),
    error = format('%%s ended the worker that read it %%s times (%%s); it is set aside. Look at the file, then run: askfolder retry',
                   key, attempts, %(how)s::text)
"""


def sweep(connection: Connection, lost_seconds: float = REPUBLISH_SECONDS) -> int:
    """Puts back what was lost with the queue or with its worker; quarantines what took its worker down too often.

    `lost_seconds`: a task that nobody took for so long was lost. Returns the number of documents that wait again.
    """
    with connection.transaction():
        connection.execute(
            f"UPDATE document SET {_SET_ASIDE} WHERE state = 'ingesting' AND leased_until < now() AND attempts >= %(most)s",
            {"most": MAX_ATTEMPTS, "how": "out of memory, or a crash"},
        )
        return connection.execute(
            f"""
            UPDATE document SET {_PUT_BACK},
                not_before = CASE WHEN lease IS NULL THEN not_before ELSE now() + make_interval(secs => least(600, 2 ^ attempts)) END
            WHERE (state IN ('ingesting', 'ready') AND leased_until < now())
               OR (state IN ('queued', 'ready') AND leased_until IS NULL AND published_at < now() - make_interval(secs => %(lost)s))
            """,
            {"lost": lost_seconds},
        ).rowcount


def hand_back(connection: Connection, workers: Iterable[str], blame: str | None = None) -> int:
    """Puts back, at once, what processes held that are known to have died. Returns how many documents.

    `blame`: how it died where the document may have done it: the attempt counts, and the third one sets it aside. None: it was
    ended from outside, and the attempt does not count.
    """
    names = list(workers)
    with connection.transaction():
        if blame is None:
            connection.execute(
                "UPDATE document SET attempts = greatest(attempts - 1, 0) WHERE worker = ANY(%s) AND lease IS NOT NULL",
                [names],
            )
        connection.execute(
            f"UPDATE document SET {_SET_ASIDE} WHERE worker = ANY(%(names)s) AND state = 'ingesting' AND attempts >= %(most)s",
            {"most": MAX_ATTEMPTS, "how": blame or "", "names": names},
        )
        return connection.execute(
            f"UPDATE document SET {_PUT_BACK} WHERE worker = ANY(%(names)s) AND lease IS NOT NULL", {"names": names}
        ).rowcount


def purge(connection: Connection) -> int:
    """Removes what was deleted a while ago, with the vectors that nothing else uses and the answers that quote it. Returns how many documents."""
    with connection.transaction():
        ids = [
            row[0]
            for row in connection.execute(
                "SELECT id FROM document WHERE state = 'deleted' AND deleted_at < now() - make_interval(secs => %s) LIMIT 500 FOR UPDATE",
                [PURGE_SECONDS],
            )
        ]
        if not ids:
            return 0
        hashes = connection.execute(
            "SELECT DISTINCT d.collection_id, c.input_hash FROM chunk c JOIN document d ON d.id = c.document_id WHERE d.id = ANY(%s)",
            [ids],
        ).fetchall()
        # The question log may not keep words of theirs: those of an answer that cites one, or of one that has sentences without a
        # citation, which may be from any passage that was looked at.
        connection.execute(
            """
            DELETE FROM question q USING question_place p
            WHERE p.question_id = q.id AND p.document_id = ANY(%s) AND (p.cited OR q.verdict = 'partial')
            """,
            [ids],
        )
        connection.execute("DELETE FROM document WHERE id = ANY(%s)", [ids])
        connection.execute(
            """
            DELETE FROM vector_cache v USING unnest(%s::bigint[], %s::bytea[]) AS gone(collection_id, input_hash)
            WHERE v.collection_id = gone.collection_id AND v.input_hash = gone.input_hash AND NOT EXISTS (
                SELECT 1 FROM chunk c JOIN document d ON d.id = c.document_id
                WHERE c.input_hash = v.input_hash AND d.collection_id = v.collection_id)
            """,
            [[row[0] for row in hashes], [row[1] for row in hashes]],
        )
        return len(ids)


def retry(connection: Connection, document_id: int | None = None) -> int:
    """Queues failed and quarantined documents again, one or all. Returns how many."""
    return connection.execute(
        """
        UPDATE document SET state = 'queued', attempts = 0, retries = 0, not_before = NULL, published_at = NULL, error = NULL,
            queued_at = now(), updated_at = now()
        WHERE (state IN ('failed', 'quarantined') OR (state = 'queued' AND not_before > now()))
          AND (%(id)s::bigint IS NULL OR id = %(id)s)
        """,
        {"id": document_id},
    ).rowcount


def wake(connection: Connection) -> int:
    """After a start: what waits for something that failed, such as a cap of the day, is tried now, as settings may have changed."""
    return connection.execute(
        "UPDATE document SET not_before = NULL WHERE state IN ('queued', 'ready') AND not_before > now() AND retries > 0"
    ).rowcount
