"""Sources: which producer serves one, the result of its last scan, requests for the next scan, and its workers."""

import json

from psycopg import sql
from psycopg.rows import dict_row

from shared import db
from shared.db import Connection

PRODUCER_LOCK = 0x61736B68  # with the hash of the source's kind and root: held by the one producer that serves it
_SERVED = sql.SQL("""EXISTS (
    SELECT 1 FROM pg_locks l WHERE l.locktype = 'advisory' AND l.granted AND l.classid::bigint = {}
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND l.objid::bigint = hashtext(s.kind || ':' || s.root)::bigint & 4294967295)
""").format(PRODUCER_LOCK)
WORKER_SECONDS = 30.0  # a worker that was not seen for so long is gone


def source(connection: Connection, kind: str, root: str, collection: str = "default") -> int:
    """Return the id of a source, and create it if it is new."""
    connection.execute("INSERT INTO collection (name) VALUES (%s) ON CONFLICT DO NOTHING", [collection])
    connection.execute(
        "INSERT INTO source (collection_id, kind, root) SELECT id, %s, %s FROM collection WHERE name = %s "
        "ON CONFLICT DO NOTHING",
        [kind, root, collection],
    )
    return int(db.value(connection, "SELECT id FROM source WHERE kind = %s AND root = %s", [kind, root]))


def serve(connection: Connection, kind: str, root: str) -> bool:
    """Make this connection the one producer of a source. Return False while another one is."""
    # PostgreSQL must notice within half a minute that a producer's machine is gone, so that another can take over.
    connection.execute("SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3")
    query = "SELECT pg_try_advisory_lock(%s, hashtext(%s))"
    return bool(db.value(connection, query, [PRODUCER_LOCK, f"{kind}:{root}"]))


# --- scans -----------------------------------------------------------------------------------------------------------


def identity(connection: Connection, source_id: int) -> str | None:
    """Return the device and inode of the folder that the last scan saw under the source's name."""
    row = connection.execute("SELECT identity FROM source WHERE id = %s", [source_id]).fetchone()
    return row[0] if row else None


def scanned(connection: Connection, source_id: int, identity: str, problem: str | None, found: dict[str, int]) -> None:
    """Record a finished full scan. `problem`: what it could not see; `found`: its counts."""
    connection.execute(
        "UPDATE source SET scanned_at = now(), identity = %s, problem = %s, held = false, scan = to_jsonb(%s::json) "
        "WHERE id = %s",
        [identity, problem, json.dumps(found), source_id],
    )


def stopped(connection: Connection, source_id: int, problem: str) -> None:
    """Record a full scan that could not be trusted and changed nothing."""
    query = "UPDATE source SET scanned_at = now(), problem = %s, held = true WHERE id = %s"
    connection.execute(query, [problem, source_id])


def ask_scan(connection: Connection, confirmed: bool, rehash: bool) -> list[int]:
    """Request a full scan of every served source. Return the sources' ids."""
    query = sql.SQL("""
        UPDATE source s SET asked_at = now(), confirmed = s.confirmed OR %s, rehash = s.rehash OR %s
        WHERE {} RETURNING id
    """)
    return [number for (number,) in connection.execute(query.format(_SERVED), [confirmed, rehash])]


def asked_scan(connection: Connection, source_id: int) -> tuple[bool, bool] | None:
    """Take the request for a full scan: (confirmed, rehash). `scanned_at` is empty until the scan is finished."""
    query = """
        UPDATE source s SET asked_at = NULL, scanned_at = NULL, confirmed = false, rehash = false FROM source old
        WHERE s.id = %s AND old.id = s.id AND s.asked_at IS NOT NULL RETURNING old.confirmed, old.rehash
    """
    row = connection.execute(query, [source_id]).fetchone()
    return (row[0], row[1]) if row else None


# --- workers ---------------------------------------------------------------------------------------------------------


def worker_seen(connection: Connection, name: str, processes: int, roots: list[str]) -> None:
    """Record that a Celery worker is alive, and the roots of the sources that it can read."""
    connection.execute(
        "INSERT INTO worker (name, processes, roots) VALUES (%s, %s, %s) ON CONFLICT (name) DO UPDATE SET "
        "processes = excluded.processes, roots = excluded.roots, seen_at = now()",
        [name, processes, roots],
    )


def worker_left(connection: Connection, name: str) -> None:
    """Delete a worker that ended, and workers that were not seen for WORKER_SECONDS."""
    query = "DELETE FROM worker WHERE name = %s OR seen_at < now() - make_interval(secs => %s)"
    connection.execute(query, [name, WORKER_SECONDS])


def capacity(connection: Connection, root: str) -> int:
    """Count the processes of the workers that can read a source: documents that they ingest at once."""
    query = """
        SELECT coalesce(sum(processes), 0) FROM worker
        WHERE %s = ANY(roots) AND seen_at > now() - make_interval(secs => %s)
    """
    return int(db.value(connection, query, [root, WORKER_SECONDS]))


# --- what people read ------------------------------------------------------------------------------------------------


def listed(connection: Connection) -> list[dict[str, object]]:
    """List the sources: the last full scan and its problem, `scan_asked`, and `served` (by a producer)."""
    query = sql.SQL("""
        SELECT s.id, s.kind, s.root, s.scanned_at, s.scan, s.problem, s.held, s.asked_at IS NOT NULL AS scan_asked,
               {} AS served
        FROM source s ORDER BY s.id
    """)
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query.format(_SERVED)).fetchall()


def problems(connection: Connection) -> list[str]:
    """Return the problems of the sources, a sentence each."""
    query = "SELECT source_id, count(*) FROM document WHERE state IN ('queued', 'ingesting') GROUP BY source_id"
    queued: dict[object, int] = dict(connection.execute(query).fetchall())
    sentences = []
    for row in listed(connection):
        count, root = queued.get(row["id"], 0), str(row["root"])
        waiting = f"{count} queued documents wait, because no"
        if row["served"] and row["problem"]:
            sentences.append(str(row["problem"]))
        if count and not row["served"]:
            sentences.append(f"{waiting} producer serves {root}: start askfolder with --inbox {root}.")
        if count and row["served"] and not capacity(connection, root):
            sentences.append(f"{waiting} worker can read {root}.")
    return sentences
