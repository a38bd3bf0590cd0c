"""List documents and count them by state."""

from psycopg import sql
from psycopg.rows import dict_row

from shared import db
from shared.db import Connection

_DOCUMENTS = sql.SQL("""
    SELECT d.id, d.key AS source, d.title, d.state, t.stage,
           CASE WHEN t.total IS NULL THEN NULL ELSE json_build_object('done', t.done, 'total', t.total) END AS progress,
           d.error, d.attempts, d.wanted_size AS size, d.chunks, d.format,
           greatest(d.updated_at, t.updated_at) AS updated_at, s.root AS source_root,
           d.live_revision IS NOT NULL AS answers, d.dated{}
    FROM document d JOIN source s ON s.id = d.source_id LEFT JOIN task t ON t.document_id = d.id
""")
_PAGE = _DOCUMENTS.format(sql.SQL("")) + sql.SQL("""
    WHERE d.id > %(cursor)s AND (d.state = %(state)s OR (%(state)s::text IS NULL AND d.state <> 'deleted'))
      AND (%(q)s::text IS NULL OR strpos(lower(d.key), lower(%(q)s)) > 0)
    ORDER BY d.id LIMIT %(limit)s
""")
_ONE = _DOCUMENTS.format(sql.SQL(", d.metadata")) + sql.SQL("WHERE d.id = %s")


def listed(
    connection: Connection, limit: int, cursor: int = 0, state: str | None = None, q: str | None = None
) -> list[dict[str, object]]:
    """List documents by id after `cursor`, without metadata. `q`: part of the name. Deleted ones: only by `state`."""
    with connection.cursor(row_factory=dict_row) as rows:
        return rows.execute(_PAGE, {"cursor": cursor, "state": state, "q": q, "limit": limit}).fetchall()


def one(connection: Connection, document_id: int) -> dict[str, object] | None:
    """Return a document with its metadata."""
    with connection.cursor(row_factory=dict_row) as rows:
        return rows.execute(_ONE, [document_id]).fetchone()


def counts(connection: Connection) -> dict[str, int]:
    """Count documents by state."""
    query = "SELECT state, count(*) FROM document WHERE state <> 'deleted' GROUP BY state"
    return {state: int(count) for state, count in connection.execute(query)}


def load(connection: Connection) -> dict[str, float | int | None]:
    """Return the documents waiting, the age of the oldest, documents a minute, and seconds until all are ingested.

    The rate is that of the last two minutes. The seconds are estimated by bytes; None if too few were ingested.
    """
    row: dict[str, float | int | None] = db.value(
        connection,
        """
        WITH waiting AS (
            SELECT count(*) AS n, coalesce(sum(wanted_size), 0)::float8 AS bytes, now() - min(queued_at) AS oldest
            FROM document WHERE state IN ('queued', 'ingesting')
        ), done AS (
            SELECT count(*) AS n, sum(wanted_size)::float8 AS bytes,
                   greatest(extract(epoch FROM now() - min(ready_at))::float8, 1) AS seconds
            FROM document WHERE ready_at > now() - interval '2 minutes'
        )
        SELECT json_build_object(
            'waiting', waiting.n,
            'oldest_seconds', round(extract(epoch FROM waiting.oldest), 1),
            'per_minute', round((done.n / done.seconds * 60)::numeric, 1),
            'eta_seconds', round((CASE WHEN waiting.n = 0 THEN 0 WHEN done.n > 4 AND done.bytes > 0
                                       THEN waiting.bytes / done.bytes * done.seconds END)::numeric, 1))
        FROM waiting, done
        """,
    )
    return row
