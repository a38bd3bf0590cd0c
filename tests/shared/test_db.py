"""Migrations: concurrent, newer, changed, and in a database with foreign tables."""

import threading
from pathlib import Path

import psycopg
import pytest

from shared import db
from shared.db import Connection
from shared.errors import SettingsError, TransientError


@pytest.fixture
def empty_url(database_url: str) -> str:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA askfolder CASCADE")
    return database_url


def test_concurrent_migrations_apply_each_file_once(empty_url: str) -> None:
    applied: list[list[str]] = []
    threads = [threading.Thread(target=lambda: applied.append(db.migrate(empty_url))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(len, applied)) == [0] * 5 + [len(list(db.MIGRATIONS.glob("*.sql")))]


def test_foreign_tables_are_refused_and_kept(empty_url: str) -> None:
    with psycopg.connect(empty_url, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA askfolder; CREATE TABLE askfolder.bills (id int)")
        with pytest.raises(SettingsError, match="bills"):
            db.migrate(empty_url)
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'askfolder'").fetchall()
    assert tables == [("bills",)]


def test_tables_of_other_schemas_are_ignored(empty_url: str) -> None:
    with psycopg.connect(empty_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE public.document (mine int)")
        db.migrate(empty_url)
        assert connection.execute("SELECT count(*) FROM public.document").fetchone() == (0,)


def test_newer_and_changed_migrations_stop_the_start(database_url: str, tmp_path: Path) -> None:
    for path in db.MIGRATIONS.glob("*.sql"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "0999_more.sql").write_text("CREATE TABLE more (id int)")
    assert db.migrate(database_url, tmp_path) == ["0999_more.sql"]
    with pytest.raises(SettingsError, match="newer askfolder"):
        db.migrate(database_url)
    (tmp_path / "0999_more.sql").write_text("CREATE TABLE more (id bigint)")
    with pytest.raises(SettingsError, match="changed after it was applied"):
        db.migrate(database_url, tmp_path)


def test_a_failing_migration_changes_nothing(database_url: str, tmp_path: Path, connection: Connection) -> None:
    for path in db.MIGRATIONS.glob("*.sql"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "0999_more.sql").write_text("CREATE TABLE more (id int); SELECT 1/0")
    with pytest.raises(psycopg.errors.DivisionByZero):
        db.migrate(database_url, tmp_path)
    assert connection.execute("SELECT to_regclass('askfolder.more')").fetchone() == (None,)


def test_old_pgvector_is_refused(connection: Connection, database_url: str) -> None:
    connection.execute("UPDATE pg_extension SET extversion = '0.8.1' WHERE extname = 'vector'")
    with pytest.raises(SettingsError, match=r"0\.8\.4 or newer"):
        db.check(connection, database_url)


def test_connection_errors_contain_no_password() -> None:
    url = "postgresql://me:sesame@127.0.0.1:1/base"
    with pytest.raises(TransientError, match="base on 127") as caught:
        db.connect(url)
    assert "sesame" not in str(caught.value)


def test_the_pool_waits_for_the_migration(empty_url: str) -> None:
    with db.pool(empty_url, 2) as pool:
        with pytest.raises(Exception, match=r"couldn't get a connection"):
            pool.getconn(timeout=0.3)
        db.migrate(empty_url)
        with pool.connection(timeout=10) as connection:
            assert connection.execute("SELECT '[1,2]'::halfvec").fetchone() is not None


def test_documents_without_metadata_get_the_dates_of_their_files(empty_url: str, tmp_path: Path) -> None:
    for path in db.MIGRATIONS.glob("000[12]_*.sql"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    db.migrate(empty_url, tmp_path)
    live = {"a": "1718452800123456789-5", "b": "0-5", "c": "d41d8cd98f00b204e9800998ecf8427e-2", "d": None}
    with psycopg.connect(empty_url, autocommit=True) as connection:
        connection.execute("INSERT INTO askfolder.source (collection_id, kind, root) VALUES (1, 'folder', '/')")
        for key, revision in live.items():
            connection.execute(
                "INSERT INTO askfolder.document (source_id, collection_id, key, state, wanted_revision, wanted_size, "
                "live_revision, ready_at) VALUES (1, 1, %s, 'ready', '1-1', 1, %s, '2024-01-01Z')",
                [key, revision],
            )
        assert "0003_metadata.sql" in db.migrate(empty_url)
        rows = connection.execute(
            "SELECT key, (dated AT TIME ZONE 'UTC')::text, metadata, metadata_read FROM askfolder.document ORDER BY key"
        ).fetchall()
    assert rows == [
        ("a", "2024-06-15 12:00:00.123457", {}, False),
        ("b", "1970-01-01 00:00:00", {}, False),
        ("c", "2024-01-01 00:00:00", {}, False),
        ("d", None, {}, False),
    ]
