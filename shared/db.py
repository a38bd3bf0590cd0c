"""PostgreSQL: connections, the pool, the checks before any change, the migrations."""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from pgvector.psycopg import register_vector
from psycopg import sql
from psycopg.abc import Params
from psycopg.abc import QueryNoTemplate as Query
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow, class_row
from psycopg_pool import ConnectionPool

from shared.errors import SettingsError, TransientError

MIGRATIONS = Path(__file__).parent / "migrations"
MIGRATION_LOCK = 0x61736B66  # "askf"; one number for every process that migrates
MIGRATION_SECONDS = 120.0

T = TypeVar("T")

Connection = psycopg.Connection[TupleRow]

# Notice within half a minute that a server vanished (a cable, a firewall). Without effect on unix sockets.
_NOTICE: dict[str, Any] = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}


def rows(connection: Connection, kind: type[T], query: Query, parameters: Params | None = None) -> list[T]:
    """Return a query's rows as instances of a dataclass with a field for each column."""
    with connection.cursor(row_factory=class_row(kind)) as cursor:
        return cursor.execute(query, parameters).fetchall()


def value(connection: Connection, query: Query, parameters: Params | None = None) -> Any:
    """Return the first column of the one row that a query gives."""
    row = connection.execute(query, parameters).fetchone()
    assert row is not None
    return row[0]


def describe(url: str) -> str:
    """Return the place of a database, without its password."""
    parts = conninfo_to_dict(url)
    port = f":{parts['port']}" if parts.get("port") else ""
    return f"{parts.get('dbname', '')} on {parts.get('host') or 'localhost'}{port}"


def connect(url: str, seconds: int = 10) -> Connection:
    """Open a connection for our tables. Raise TransientError if the database does not answer within `seconds`."""
    try:
        connection = psycopg.connect(url, autocommit=True, connect_timeout=seconds, **_NOTICE)
    except psycopg.OperationalError as error:
        reason = str(error).strip().splitlines()[-1]
        raise TransientError(f"PostgreSQL ({describe(url)}) does not answer: {reason}") from None
    prepare(connection)
    return connection


def prepare(connection: Connection) -> None:
    """Set the search path, and register pgvector's types."""
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
    """Prepare a pool's connection. Refuse a database that is not migrated: its types cannot be registered later."""
    prepare(connection)
    ours = value(connection, "SELECT to_regclass('askfolder.migration') IS NOT NULL")
    applied = value(connection, "SELECT coalesce(max(number), 0) FROM askfolder.migration") if ours else 0
    if applied < max(_migrations(MIGRATIONS)):
        raise psycopg.OperationalError("The tables of askfolder are missing: the producer creates them when it starts.")


def pool(url: str, size: int, also: Callable[[Connection], None] = lambda _: None) -> ConnectionPool[Connection]:
    """Open a pool that waits 3 s for a connection. `also` prepares each connection. Open it only after a fork."""

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
    """Refuse a database that askfolder cannot use, with the reason."""
    where = f"The database {describe(url)}"
    if (version := connection.info.server_version) < 150000:
        raise SettingsError(f"{where} is PostgreSQL {version // 10000}; askfolder needs 15 or newer.")
    extension = connection.execute(
        "SELECT coalesce(installed_version, default_version) FROM pg_available_extensions WHERE name = 'vector'"
    ).fetchone()
    if extension is None:
        raise SettingsError(f"{where} has no pgvector: install the extension `vector` 0.8.4 or newer on its server.")
    if tuple(map(int, extension[0].split("."))) < (0, 8, 4):
        raise SettingsError(
            f"{where} has pgvector {extension[0]}; askfolder needs 0.8.4 or newer (older ones lose rows of an index in "
            "VACUUM, and CVE-2026-3172). Update it on the server, then run ALTER EXTENSION vector UPDATE."
        )
    tables = sorted(
        name for (name,) in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'askfolder'")
    )
    if tables and "migration" not in tables:
        raise SettingsError(
            f"{where} has tables in the schema askfolder that askfolder did not create ({', '.join(tables[:5])}). "
            "Point DATABASE_URL at another database, or rename that schema."
        )


def _migrations(directory: Path) -> dict[int, Path]:
    return {int(path.name[:4]): path for path in sorted(directory.glob("[0-9][0-9][0-9][0-9]_*.sql"))}


def migrate(url: str, directory: Path = MIGRATIONS) -> list[str]:
    """Apply the missing migrations, safely beside other processes that do the same. Return their names.

    The lock is polled: waiting for it inside PostgreSQL deadlocks with CREATE INDEX CONCURRENTLY.
    """
    where, files, done = describe(url), _migrations(directory), []
    with connect(url) as connection:
        deadline = time.monotonic() + MIGRATION_SECONDS
        while not value(connection, "SELECT pg_try_advisory_lock(%s)", [MIGRATION_LOCK]):
            if time.monotonic() > deadline:
                seconds = f"{MIGRATION_SECONDS:.0f} s"
                raise TransientError(f"Another process has been migrating {where} for {seconds}; try again later.")
            time.sleep(0.05)
        check(connection, url)
        _create_schema(connection, where)
        applied = {
            n: (name, digest) for n, name, digest in connection.execute("SELECT number, name, sha256 FROM migration")
        }
        if ahead := applied.keys() - files.keys():
            raise SettingsError(
                f"The database {where} was made by a newer askfolder (migration {applied[max(ahead)][0]}): "
                "update this checkout."
            )
        for number, path in files.items():
            content = path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            if number not in applied:
                with connection.transaction():
                    connection.execute(content)
                    query = "INSERT INTO migration (number, name, sha256) VALUES (%s, %s, %s)"
                    connection.execute(query, [number, path.name, digest])
                done.append(path.name)
            elif applied[number][1] != digest:
                raise SettingsError(f"The migration {path.name} was changed after it was applied: restore it from git.")
    return done


def _create_schema(connection: Connection, where: str) -> None:
    """Create the extension, the schema and the table of migrations, if they are missing."""
    try:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        connection.execute("CREATE SCHEMA IF NOT EXISTS askfolder")
    except psycopg.errors.InsufficientPrivilege as error:
        raise SettingsError(
            f"The user of {where} may not prepare it ({error.diag.message_primary}). Let an administrator run there: "
            "CREATE EXTENSION IF NOT EXISTS vector; CREATE SCHEMA askfolder AUTHORIZATION <that user>;"
        ) from None
    prepare(connection)
    connection.execute(
        "CREATE TABLE IF NOT EXISTS migration (number integer PRIMARY KEY, name text NOT NULL, "
        "sha256 text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
    )
