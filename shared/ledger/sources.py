"""The rows of sources: which producer serves one, what its last scan found, what people ask of the next; and who works on them."""

import json

from psycopg.rows import dict_row

from shared.db import Connection

PRODUCER_LOCK = 0x61736B68  # with the hash of the source's kind and root: held by the one producer that serves it
_SERVED = """EXISTS (
    SELECT 1 FROM pg_locks l WHERE l.locktype = 'advisory' AND l.granted AND l.classid::bigint = %s
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND l.objid::bigint = hashtext(s.kind || ':' || s.root)::bigint & 4294967295)"""
WORKER_SECONDS = 30.0  # a worker that was not seen for so long is gone


def source(connection: Connection, kind: str, root: str, collection: str = "default") -> int:
    """The id of a source, made when it is new."""
    connection.execute("INSERT INTO collection (name) VALUES (%s) ON CONFLICT DO NOTHING", [collection])
    connection.execute(
        "INSERT INTO source (collection_id, kind, root) SELECT id, %s, %s FROM collection WHERE name = %s ON CONFLICT DO NOTHING",
        [kind, root, collection],
    )
    row = connection.execute("SELECT id FROM source WHERE kind = %s AND root = %s", [kind, root]).fetchone()
    assert row is not None
    return int(row[0])


def serve(connection: Connection, kind: str, root: str) -> bool:
    """Makes this connection the one producer of a source; False while another one is."""
    # PostgreSQL, too, must notice within half a minute that a producer's machine is gone, so that another can take over.
    connection.execute("SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3")
    row = connection.execute(
        "SELECT pg_try_advisory_lock(%s, hashtext(%s))", [PRODUCER_LOCK, f"{kind}:{root}"]
    ).fetchone()
    return row == (True,)


# --- scans -----------------------------------------------------------------------------------------------------------


def identity(connection: Connection, source_id: int) -> str | None:
    """Which folder (device and inode) the last scan saw under the source's name."""
    row = connection.execute("SELECT identity FROM source WHERE id = %s", [source_id]).fetchone()
    return row[0] if row else None


def scanned(connection: Connection, source_id: int, identity: str, problem: str | None, found: dict[str, int]) -> None:
    """A full scan is through. `problem`: what it could not see; `found`: its counts."""
    connection.execute(
        "UPDATE source SET scanned_at = now(), identity = %s, problem = %s, held = false, scan = to_jsonb(%s::json) WHERE id = %s",
        [identity, problem, json.dumps(found), source_id],
    )


def stopped(connection: Connection, source_id: int, problem: str) -> None:
    """A full scan could not be trusted: nothing was changed."""
    connection.execute(
        "UPDATE source SET scanned_at = now(), problem = %s, held = true WHERE id = %s", [problem, source_id]
    )


def ask_scan(connection: Connection, confirmed: bool, rehash: bool) -> list[int]:
    """Asks the producers for a full scan of every source that is served. Returns the sources' ids."""
    return [
        row[0]
        for row in connection.execute(
            f"""
            UPDATE source s SET asked_at = now(), confirmed = s.confirmed OR %s, rehash = s.rehash OR %s
            WHERE {_SERVED}
            RETURNING id
            """,
            [confirmed, rehash, PRODUCER_LOCK],
        )
    ]


def asked_scan(connection: Connection, source_id: int) -> tuple[bool, bool] | None:
    """(confirmed, rehash) when somebody asked for a full scan since the last call; `scanned_at` is empty until it is through."""
    row = connection.execute(
        """
        UPDATE source s SET asked_at = NULL, scanned_at = NULL, confirmed = false, rehash = false FROM source old
        WHERE s.id = %s AND old.id = s.id AND s.asked_at IS NOT NULL RETURNING old.confirmed, old.rehash
        """,
        [source_id],
    ).fetchone()
    return (row[0], row[1]) if row else None


# --- workers ---------------------------------------------------------------------------------------------------------


def worker_seen(connection: Connection, name: str, processes: int, roots: list[str]) -> None:
    """A Celery worker says that it is there, and which sources it can read."""
    connection.execute(
        "INSERT INTO worker (name, processes, roots) VALUES (%s, %s, %s) ON CONFLICT (name) DO UPDATE SET "
        "processes = excluded.processes, roots = excluded.roots, seen_at = now()",
        [name, processes, roots],
    )


def worker_left(connection: Connection, name: str) -> None:
    connection.execute(
        "DELETE FROM worker WHERE name = %s OR seen_at < now() - make_interval(secs => %s)", [name, WORKER_SECONDS]
    )


def capacity(connection: Connection, root: str) -> int:
    """Documents that the workers which can read a source work on at once."""
    row = connection.execute(
        "SELECT coalesce(sum(processes), 0) FROM worker WHERE %s = ANY(roots) AND seen_at > now() - make_interval(secs => %s)",
        [root, WORKER_SECONDS],
    ).fetchone()
    assert row is not None
    return int(row[0])


# --- what people read ------------------------------------------------------------------------------------------------


def listed(connection: Connection) -> list[dict[str, object]]:
    """The sources: what the last full scan found or why it stopped, whether one is asked for, whether a producer serves it."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            f"""
            SELECT s.id, s.kind, s.root, s.scanned_at, s.scan, s.problem, s.held, s.asked_at IS NOT NULL AS scan_asked,
                   {_SERVED} AS served
            FROM source s ORDER BY s.id
            """,
            [PRODUCER_LOCK],
        ).fetchall()


def problems(connection: Connection) -> list[str]:
    """What is wrong with the sources, a sentence each."""
    queued: dict[int, int] = dict(
        connection.execute(
            "SELECT source_id, count(*) FROM document WHERE state IN ('queued', 'ingesting') GROUP BY source_id"
        ).fetchall()
    )
    found = []
    for row in listed(connection):
        waiting = queued.get(row["id"], 0)  # type: ignore[call-overload]
        if row["served"] and row["problem"]:
            found.append(str(row["problem"]))
        if waiting and not row["served"]:
            found.append(
                f"{waiting} queued documents wait, because no producer serves {row['root']} now: start it with --inbox {row['root']} to go on."
            )
        if waiting and row["served"] and not capacity(connection, str(row["root"])):
            found.append(f"{waiting} queued documents wait, because no worker that can read {row['root']} is there.")
    return found
