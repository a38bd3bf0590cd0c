"""PostgreSQL: the pool, the checks before anything is touched, the migrations."""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
from pgvector.psycopg import register_vector
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool

from shared.errors import SettingsError, TransientError

MIGRATIONS = Path(__file__).parent / "migrations"
MIGRATION_LOCK = 0x61736B66  # "askf"; one number for every process that migrates
MIGRATION_SECONDS = 120.0

Connection = psycopg.Connection[TupleRow]

# A server that vanished without a word (a cable, a firewall) is noticed within half a minute. Without effect on unix sockets.
_NOTICE: dict[str, Any] = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}


def describe(url: str) -> str:
    """Where a database is, without its password."""
    parts = conninfo_to_dict(url)
    return f"{parts.get('dbname', '')} on {parts.get('host') or 'localhost'}{':' + str(parts['port']) if parts.get('port') else ''}"


def connect(url: str, seconds: int = 10) -> Connection:
    """One connection, ready for our tables. Raises TransientError when the database does not answer within so many seconds."""
    try:
        connection = psycopg.connect(url, autocommit=True, connect_timeout=seconds, **_NOTICE)
    except psycopg.OperationalError as error:
        raise TransientError(
            f"PostgreSQL ({describe(url)}) does not answer: {str(error).strip().splitlines()[-1]}"
        ) from None
    prepare(connection)
    return connection


def prepare(connection: Connection) -> None:
    connection.autocommit = True
    schema = connection.execute(
        "SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'vector'"
    ).fetchone()
    path = sql.SQL(", ").join(
        sql.Identifier(name) for name in dict.fromkeys(["askfolder", schema[0] if schema else "public", "public"])
    )
    connection.execute(sql.SQL("SET search_path = {}").format(path))
    if schema:
        register_vector(connection)


def prepare_pooled(connection: Connection) -> None:
    """For a pool: refuses a database that is not migrated yet; a connection learns our types when it is made, or never."""
    prepare(connection)
    ours = connection.execute("SELECT to_regclass('askfolder.migration') IS NOT NULL").fetchone() == (True,)
    applied = (
        connection.execute("SELECT coalesce(max(number), 0) FROM askfolder.migration").fetchone() if ours else None
    )
    if applied is None or applied[0] < max(int(path.name[:4]) for path in MIGRATIONS.glob("[0-9]*.sql")):
        raise psycopg.OperationalError(
            "The tables of askfolder are not there yet: the producer makes them when it starts."
        )


def pool(url: str, size: int, also: Callable[[Connection], None] = lambda _: None) -> ConnectionPool[Connection]:
    """A pool that waits 3 s for a connection; `also` prepares each further. Open it after a fork, never before."""

    def configure(connection: Connection) -> None:
        prepare_pooled(connection)
        also(connection)

    return ConnectionPool(
        url,
        min_size=1,
        max_size=size,
        open=True,
        timeout=3.0,
        configure=configure,
        check=ConnectionPool.check_connection,
        kwargs={"connect_timeout": 3} | _NOTICE,
        reconnect_timeout=5.0,
    )


def check(connection: Connection, url: str) -> None:
    """Refuses what askfolder cannot live in, with the reason."""
    where = describe(url)
    if connection.info.server_version < 150000:
        raise SettingsError(
            f"The database {where} is PostgreSQL {connection.info.server_version // 10000}; askfolder needs 15 or newer."
        )
    extension = connection.execute(
        "SELECT default_version, installed_version FROM pg_available_extensions WHERE name = 'vector'"
    ).fetchone()
    if extension is None:
        raise SettingsError(
            f"The database {where} has no pgvector: install the extension `vector` 0.8.4 or newer on its server."
        )
    version = extension[1] or extension[0]
    if tuple(int(part) for part in version.split(".")) < (0, 8, 4):
        raise SettingsError(
            f"The database {where} has pgvector {version}; askfolder needs 0.8.4 or newer (older ones lose rows of an index in VACUUM, and "
            "CVE-2026-3172). Update it on the server, then run ALTER EXTENSION vector UPDATE."
        )
    tables = {name for (name,) in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'askfolder'")}
    if tables and "migration" not in tables:
        raise SettingsError(
            f"The schema askfolder of the database {where} holds tables that are not ours ({', '.join(sorted(tables)[:5])}). "
            "Point DATABASE_URL at another database, or rename that schema."
        )


def migrate(url: str, directory: Path = MIGRATIONS) -> list[str]:
    """Brings the schema up to date; safe when several processes do it at once. Returns the names that were applied.

    The lock is polled: waiting inside PostgreSQL for it deadlocks with CREATE INDEX CONCURRENTLY.
    """
    with connect(url) as connection:
        deadline = time.monotonic() + MIGRATION_SECONDS
        while not connection.execute("SELECT pg_try_advisory_lock(%s)", [MIGRATION_LOCK]).fetchone()[0]:  # type: ignore[index]
            if time.monotonic() > deadline:
                raise TransientError(
                    f"Another process has been migrating {describe(url)} for {MIGRATION_SECONDS:.0f} s; try again later."
                )
            time.sleep(0.05)
        check(connection, url)
        try:
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            connection.execute("CREATE SCHEMA IF NOT EXISTS askfolder")
        except psycopg.errors.InsufficientPrivilege as error:
            raise SettingsError(
                f"The user of {describe(url)} may not prepare it ({error.diag.message_primary}). Let an administrator run there: "
                "CREATE EXTENSION IF NOT EXISTS vector; CREATE SCHEMA askfolder AUTHORIZATION <that user>;"
            ) from None
        prepare(connection)
        connection.execute(
            "CREATE TABLE IF NOT EXISTS migration (number integer PRIMARY KEY, name text NOT NULL, sha256 text NOT NULL, "
            "applied_at timestamptz NOT NULL DEFAULT now())"
        )
        applied = {
            n: (name, digest) for n, name, digest in connection.execute("SELECT number, name, sha256 FROM migration")
        }
        files = {int(path.name[:4]): path for path in sorted(directory.glob("[0-9][0-9][0-9][0-9]_*.sql"))}
        if ahead := sorted(set(applied) - set(files)):
            raise SettingsError(
                f"The database {describe(url)} was made by a newer askfolder (migration {applied[ahead[-1]][0]}): update this checkout."
            )
        done = []
        for number, path in files.items():
            content = path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            if number in applied:
                if applied[number][1] != digest:
                    raise SettingsError(
                        f"The migration {path.name} was changed after it was applied: restore the file from git."
                    )
                continue
            with connection.transaction():
                connection.execute(content)
                connection.execute(
                    "INSERT INTO migration (number, name, sha256) VALUES (%s, %s, %s)", [number, path.name, digest]
                )
            done.append(path.name)
        return done
