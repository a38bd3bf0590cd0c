"""The ledger: one row per (source, key) with the wanted and the live revision, and a task for each document in flight.

A connection is the first argument of every function; each is one statement or one transaction. Statements that lock a
document and its task lock the document first.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from psycopg import sql
from psycopg.abc import Params
from psycopg.abc import QueryNoTemplate as Query

from shared import db
from shared.db import Connection

LEASE_SECONDS = 45.0
HEARTBEAT_SECONDS = 10.0
MAX_ATTEMPTS = 3
REPUBLISH_SECONDS = 30.0  # a task that no worker took for so long was lost with the queue, whatever the queue says
PURGE_SECONDS = 3600.0


# --- what the sources want -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """A document as a scan compares it with a file. `live_*` are None while nothing of it can be found."""

    id: int
    key: str
    state: str
    wanted_revision: str
    wanted_size: int
    live_revision: str | None
    live_sha256: bytes | None
    metadata_read: bool


_ROWS = sql.SQL("""
    SELECT d.id, d.key, d.state, d.wanted_revision, d.wanted_size, d.live_revision, d.live_sha256, d.metadata_read
    FROM document d
""")
# A range of the index, as '0' comes after '/'.
_BELOW = sql.SQL("""
    JOIN unnest(%(below)s::text[]) AS name ON d.key COLLATE "C" >= name AND d.key COLLATE "C" < name || '0'
        AND (d.key = name OR starts_with(d.key, name || '/'))
""")


def known(connection: Connection, source_id: int, below: Iterable[str] | None = None) -> dict[str, LedgerRow]:
    """Return the documents of a source by key. `below`: only these keys and the keys in folders of these names."""
    query = _ROWS + (sql.SQL("") if below is None else _BELOW) + sql.SQL("WHERE d.source_id = %(source)s")
    rows = db.rows(connection, LedgerRow, query, {"source": source_id, "below": list(below or ())})
    return {row.key: row for row in rows}


def total(connection: Connection, source_id: int) -> int:
    """Count the documents of a source, without deleted ones."""
    query = "SELECT count(*) FROM document WHERE source_id = %s AND state <> 'deleted'"
    return int(db.value(connection, query, [source_id]))


def same_size(connection: Connection, source_id: int, sizes: Iterable[int]) -> dict[int, list[LedgerRow]]:
    """Return live documents, deleted ones included, by size: candidates for a rename."""
    query = _ROWS + sql.SQL("WHERE source_id = %s AND live_sha256 IS NOT NULL AND wanted_size = ANY(%s)")
    by_size: dict[int, list[LedgerRow]] = {}
    for row in db.rows(connection, LedgerRow, query, [source_id, list(sizes)]):
        by_size.setdefault(row.wanted_size, []).append(row)
    return by_size


def _change(connection: Connection, statement: Query, parameters: Params) -> int:
    """Change documents by a statement that returns ids, and delete their tasks with the leases. Return how many."""
    with connection.transaction():
        ids = [row[0] for row in connection.execute(statement, parameters)]
        connection.execute("DELETE FROM task WHERE document_id = ANY(%s)", [ids])
        return len(ids)


def enqueue(connection: Connection, source_id: int, files: Sequence[tuple[str, str, int]], bulk: bool = False) -> None:
    """Queue new and changed keys: (key, revision, size in bytes). A worker with an older revision loses its claim.

    `bulk`: found together with many others; single files are ingested before them.
    """
    _change(
        connection,
        """
        INSERT INTO document (source_id, collection_id, key, state, wanted_revision, wanted_size, bulk, queued_at)
        SELECT s.id, s.collection_id, f.key, 'queued', f.revision, f.size, %s, now()
        FROM source s, unnest(%s::text[], %s::text[], %s::bigint[]) AS f(key, revision, size) WHERE s.id = %s
        ON CONFLICT (source_id, key) DO UPDATE SET
            state = CASE WHEN document.state = 'excluded' THEN 'excluded'
                         WHEN document.live_revision = excluded.wanted_revision THEN 'ready' ELSE 'queued' END,
            wanted_revision = excluded.wanted_revision, wanted_size = excluded.wanted_size, bulk = excluded.bulk,
            queued_at = now(), attempts = 0, retries = 0, not_before = NULL, error = NULL, deleted_at = NULL,
            updated_at = now()
        RETURNING id
        """,
        [bulk, *([file[column] for file in files] for column in range(3)), source_id],
    )


def rebuild(connection: Connection, ids: Iterable[int]) -> int:
    """Queue documents to be read again; their live text answers until then. Return how many."""
    return _change(
        connection,
        """
        UPDATE document SET state = 'queued', live_sha256 = NULL, attempts = 0, retries = 0, not_before = NULL,
            error = NULL, bulk = true, queued_at = now(), updated_at = now()
        WHERE id = ANY(%s) AND state NOT IN ('deleted', 'excluded') RETURNING id
        """,
        [list(ids)],
    )


# A new revision of the same content: a date that came from the file follows it; a date from the document stays.
NEW_REVISION = sql.SQL("""
    UPDATE document SET wanted_revision = %(revision)s, live_revision = %(revision)s,
        dated = CASE WHEN dated IS DISTINCT FROM revision_time(live_revision) THEN dated
                     ELSE coalesce(revision_time(%(revision)s), dated) END
""")


def move(connection: Connection, document_id: int, key: str, revision: str) -> None:
    """Rename a document. Its embeddings stay, because they do not contain the name."""
    changes = sql.SQL("""
        , key = %(key)s, state = CASE state WHEN 'excluded' THEN state ELSE 'ready' END, attempts = 0, retries = 0,
        not_before = NULL, error = NULL, deleted_at = NULL, updated_at = now()
        WHERE id = %(id)s RETURNING id
    """)
    _change(connection, NEW_REVISION + changes, {"key": key, "revision": revision, "id": document_id})


def delete(connection: Connection, ids: Iterable[int]) -> None:
    """Remove documents from every answer at once. `purge` removes their rows later."""
    _change(
        connection,
        "UPDATE document SET state = 'deleted', deleted_at = now(), error = NULL, updated_at = now() "
        "WHERE id = ANY(%s) AND state <> 'deleted' RETURNING id",
        [list(ids)],
    )


def retry(connection: Connection, document_id: int | None = None) -> int:
    """Queue failed, quarantined and postponed documents again, one or all. Return how many."""
    return connection.execute(
        """
        UPDATE document SET state = 'queued', attempts = 0, retries = 0, not_before = NULL, error = NULL,
            queued_at = now(), updated_at = now()
        WHERE (state IN ('failed', 'quarantined') OR (state = 'queued' AND not_before > now()))
          AND (%(id)s::bigint IS NULL OR id = %(id)s)
        """,
        {"id": document_id},
    ).rowcount


def wake(connection: Connection) -> int:
    """Make postponed documents due now. Called after a start, because changed settings may solve their problem."""
    return connection.execute(
        "UPDATE document SET not_before = NULL "
        "WHERE state IN ('queued', 'ready') AND not_before > now() AND retries > 0"
    ).rowcount


def purge(connection: Connection) -> int:
    """Remove documents that were deleted a while ago, with the vectors that only they use. Return how many.

    Logged answers that quote one go too, and answers with uncited sentences that may come from one.
    """
    return connection.execute(
        """
        WITH gone AS (
            SELECT id, collection_id FROM document
            WHERE state = 'deleted' AND deleted_at < now() - make_interval(secs => %s) LIMIT 500 FOR UPDATE
        ), answers AS (
            DELETE FROM question q USING question_place p, gone
            WHERE p.question_id = q.id AND p.document_id = gone.id AND (p.cited OR q.verdict = 'partial')
        ), hashes AS (
            SELECT DISTINCT gone.collection_id, c.input_hash FROM gone JOIN chunk c ON c.document_id = gone.id
        ), vectors AS (
            DELETE FROM vector_cache v USING hashes h
            WHERE v.collection_id = h.collection_id AND v.input_hash = h.input_hash AND NOT EXISTS (
                SELECT 1 FROM chunk c JOIN document d ON d.id = c.document_id
                WHERE c.input_hash = v.input_hash AND d.collection_id = v.collection_id
                  AND d.id NOT IN (SELECT id FROM gone))
        )
        DELETE FROM document USING gone WHERE document.id = gone.id
        """,
        [PURGE_SECONDS],
    ).rowcount


# --- tasks -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Due:
    """A document to publish. `size`: bytes."""

    id: int
    source_id: int
    key: str
    size: int


# A document that answers and that the building generation lacks.
UNBUILT = sql.SQL("""
    d.state = 'ready' AND (SELECT id FROM generation WHERE state = 'building') IS NOT NULL AND NOT EXISTS (
        SELECT 1 FROM document_generation h
        WHERE h.document_id = d.id AND h.generation_id = (SELECT id FROM generation WHERE state = 'building')
          AND h.text_version = d.text_version)
""")
_DUE = sql.SQL("""
    SELECT d.id, d.source_id, d.key, d.wanted_size AS size FROM document d
    WHERE {which} AND d.large = %(large)s AND (d.not_before IS NULL OR d.not_before <= now())
      AND NOT EXISTS (SELECT 1 FROM task t WHERE t.document_id = d.id)
    ORDER BY {first} d.wanted_size, d.id LIMIT %(limit)s
""")
_DUE_QUEUED = _DUE.format(
    which=sql.SQL("d.state = 'queued' AND d.source_id = ANY(%(sources)s)"),
    first=sql.SQL("d.bulk, d.live_revision IS NULL,"),
)
_DUE_UNBUILT = _DUE.format(which=UNBUILT, first=sql.SQL(""))


def due(connection: Connection, source_ids: list[int], limit: int, large: bool = False) -> list[Due]:
    """Return the documents to publish next, of the small ones or of the large ones (over 16,000 bytes).

    Single files, changed and small documents come first; then documents of any source that a building generation lacks.
    """
    parameters = {"large": large, "sources": source_ids, "limit": limit}
    queued = db.rows(connection, Due, _DUE_QUEUED, parameters)
    building = connection.execute("SELECT 1 FROM generation WHERE state = 'building'").fetchone()
    if len(queued) == limit or building is None:
        return queued
    return queued + db.rows(connection, Due, _DUE_UNBUILT, parameters | {"limit": limit - len(queued)})


def in_flight(connection: Connection) -> list[tuple[int, bool, bool]]:
    """Return the published and leased documents: (size in bytes, large, taken by a worker)."""
    return connection.execute(
        "SELECT d.wanted_size, d.large, t.lease IS NOT NULL FROM task t JOIN document d ON d.id = t.document_id "
        "WHERE t.leased_until IS NULL OR t.leased_until > now()"
    ).fetchall()


def published(connection: Connection, ids: list[int]) -> None:
    """Record tasks before they are sent: a task that is lost is sent again after REPUBLISH_SECONDS."""
    connection.execute(
        "INSERT INTO task (document_id) SELECT id FROM document WHERE id = ANY(%s) AND state IN ('queued', 'ready') "
        "ORDER BY id FOR UPDATE ON CONFLICT DO NOTHING",
        [ids],
    )


def unpublished(connection: Connection, ids: list[int]) -> None:
    """Delete the record of tasks that could not be sent."""
    connection.execute("DELETE FROM task WHERE document_id = ANY(%s) AND lease IS NULL", [ids])


def end_tasks(connection: Connection, which: sql.SQL, changes: sql.Composable, parameters: Mapping[str, object]) -> int:
    """Delete tasks and change their documents. `which`: a condition on d and t. Return the number of documents.

    FOR UPDATE checks the condition again after waiting: a heartbeat or a claim that comes first keeps its lease.
    Rows are locked in order, so that two calls do not deadlock.
    """
    statement = sql.SQL("""
        WITH ended AS (
            SELECT d.id, t.lease FROM document d JOIN task t ON t.document_id = d.id WHERE {which}
            ORDER BY d.id FOR UPDATE
        ), deleted AS (DELETE FROM task t USING ended WHERE t.document_id = ended.id)
        UPDATE document d SET {changes}, updated_at = now() FROM ended WHERE d.id = ended.id
    """)
    return connection.execute(statement.format(which=which, changes=changes), parameters).rowcount


# `how`: how its worker died if the document may be the cause, else NULL.
_QUEUED_AGAIN = sql.SQL("""
    state = CASE WHEN d.state <> 'ingesting' THEN d.state
                 WHEN %(how)s::text IS NOT NULL AND d.attempts >= %(most)s THEN 'quarantined' ELSE 'queued' END,
    error = CASE WHEN d.state = 'ingesting' AND %(how)s::text IS NOT NULL AND d.attempts >= %(most)s
                 THEN format('%%s ended its worker process %%s times (%%s) and is quarantined. '
                             'Check the file, then run: askfolder retry', d.key, d.attempts, %(how)s::text)
                 ELSE d.error END
""")


def sweep(connection: Connection, lost_seconds: float = REPUBLISH_SECONDS) -> int:
    """Queue again what was lost with the queue or with its worker; quarantine what ended its worker too often.

    `lost_seconds`: a task that no worker took for so long was lost. Return the number of documents.
    """
    which = sql.SQL("""
        t.leased_until < now() OR (t.lease IS NULL AND t.published_at < now() - make_interval(secs => %(lost)s))
    """)
    wait = sql.SQL("""
        , not_before = CASE WHEN ended.lease IS NULL THEN d.not_before
                            ELSE now() + make_interval(secs => least(600, 2 ^ d.attempts)) END
    """)
    parameters = {"lost": lost_seconds, "how": "out of memory, or a crash", "most": MAX_ATTEMPTS}
    return end_tasks(connection, which, _QUEUED_AGAIN + wait, parameters)


def hand_back(connection: Connection, workers: Iterable[str], blame: str | None = None) -> int:
    """Queue again, at once, what dead processes held. Return the number of documents.

    `blame`: how they died if the document may be the cause: the attempt counts, and the third one quarantines. None:
    they were ended from outside, and the attempt does not count.
    """
    uncounted = sql.SQL(", attempts = greatest(d.attempts - CASE WHEN %(how)s::text IS NULL THEN 1 ELSE 0 END, 0)")
    parameters = {"names": list(workers), "how": blame, "most": MAX_ATTEMPTS}
    return end_tasks(connection, sql.SQL("t.worker = ANY(%(names)s)"), _QUEUED_AGAIN + uncounted, parameters)


def put_back(connection: Connection, ids: list[int]) -> None:
    """Queue stuck documents again, with or without a task."""
    _change(
        connection,
        "UPDATE document SET state = CASE state WHEN 'ingesting' THEN 'queued' ELSE state END, not_before = NULL, "
        "updated_at = now() WHERE id = ANY(%s) RETURNING id",
        [ids],
    )
