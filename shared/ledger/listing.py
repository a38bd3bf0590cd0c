"""List documents and count them by state."""

from psycopg.rows import dict_row

from shared.db import Connection

# --- what people read ------------------------------------------------------------------------------------------------

_SHOWN = """
    d.id, d.key AS source, d.title, d.state, d.stage,
           CASE WHEN d.progress_total IS NULL THEN NULL ELSE json_build_object('done', d.progress_done, 'total', d.progress_total) END AS progress,
           d.error, d.attempts, d.wanted_size AS size, d.chunks, d.format, d.updated_at, s.root AS source_root, d.live_revision IS NOT NULL AS answers,
           d.dated
"""

_FROM = " FROM document d JOIN source s ON s.id = d.source_id"


def listed(
    connection: Connection, limit: int, cursor: int = 0, state: str | None = None, q: str | None = None
) -> list[dict[str, object]]:
    """Documents by id, without their metadata, after `cursor`; `q`: a part of the name. Deleted ones only when they are asked for."""
    with connection.cursor(row_factory=dict_row) as rows:
        return rows.execute(
            f"SELECT {_SHOWN}"
            + _FROM
            + """
            WHERE d.id > %(cursor)s AND (d.state = %(state)s OR (%(state)s::text IS NULL AND d.state <> 'deleted'))
              AND (%(q)s::text IS NULL OR strpos(lower(d.key), lower(%(q)s)) > 0)
            ORDER BY d.id LIMIT %(limit)s
            """,
            {"cursor": cursor, "state": state, "q": q, "limit": limit},
        ).fetchall()


def one(connection: Connection, document_id: int) -> dict[str, object] | None:
    """A document with its metadata."""
    with connection.cursor(row_factory=dict_row) as rows:
        return rows.execute(f"SELECT {_SHOWN}, d.metadata {_FROM} WHERE d.id = %s", [document_id]).fetchone()


def counts(connection: Connection) -> dict[str, int]:
    return {
        state: int(n)
        for state, n in connection.execute(
            "SELECT state, count(*) FROM document WHERE state <> 'deleted' GROUP BY state"
        )
    }


def load(connection: Connection) -> dict[str, float | int | None]:
    """What waits and how fast it goes: documents waiting, seconds that the oldest waits, documents a minute, seconds to go.

    The rate is that of the last two minutes; the seconds to go are by bytes, None while too few are through to tell.
    """
    row = connection.execute(
        """
        WITH waiting AS (
            SELECT count(*) AS n, coalesce(sum(wanted_size), 0)::float8 AS bytes, extract(epoch FROM now() - min(queued_at))::float8 AS oldest
            FROM document WHERE state IN ('queued', 'ingesting')
        ), done AS (
            SELECT count(*) AS n, sum(wanted_size)::float8 AS bytes, greatest(extract(epoch FROM now() - min(ready_at))::float8, 1) AS seconds
            FROM document WHERE ready_at > now() - interval '2 minutes'
        )
        SELECT waiting.n, waiting.oldest, done.n / done.seconds * 60,
               CASE WHEN waiting.n = 0 THEN 0 WHEN done.n > 4 AND done.bytes > 0 THEN waiting.bytes / done.bytes * done.seconds END
        FROM waiting, done
        """
    ).fetchone()
    assert row is not None
    rounded = [None if value is None else round(value, 1) for value in row[1:]]
    return {"waiting": row[0], "oldest_seconds": rounded[0], "per_minute": rounded[1], "eta_seconds": rounded[2]}
