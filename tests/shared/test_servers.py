"""The embedded servers: no root privileges, unchanged folder permissions, no files left behind."""

import os
from pathlib import Path

import psutil
import psycopg

from shared.system.servers import Servers


def test_servers_in_a_long_path_with_spaces_below_an_unreadable_folder(tmp_path: Path) -> None:
    closed = tmp_path / "closed to others"
    closed.mkdir(mode=0o700)
    data = closed / ("x" * 120) / "a b" / ".askfolder"
    servers = Servers(data, durable=False)
    servers.start()
    try:
        with psycopg.connect(servers.database_url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
            listens = connection.execute("SHOW listen_addresses").fetchone()
        assert listens == ("",)
        pids = [process.pid for process in servers.processes.values()]
        assert len(pids) == 2
        for pid in pids:
            assert psutil.Process(pid).uids().effective == (os.getuid() or psutil.Process(pid).uids().effective)
            assert psutil.Process(pid).uids().effective != 0
            assert not psutil.Process(pid).net_connections("inet")
        sockets = servers.sockets
        assert sockets.stat().st_mode & 0o777 == 0o700
    finally:
        servers.stop()
    assert not sockets.exists()
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert closed.stat().st_mode & 0o777 == 0o700
    servers = Servers(data, durable=False)
    servers.start()
    try:
        with psycopg.connect(servers.database_url) as connection:
            assert connection.execute("SELECT one FROM kept").fetchone() == (1,)
    finally:
        servers.stop()


def test_running_servers_are_found(servers: Servers, tmp_path: Path) -> None:
    found = Servers.running(servers.data)
    assert found is not None
    assert (found.database_url, found.redis_url) == (servers.database_url, servers.redis_url)
    assert Servers.running(tmp_path) is None
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "postmaster.pid").write_text(f"{os.getpid()}\n/data\n0\n5432\n/tmp/x\n")
    assert Servers.running(tmp_path) is None, "another process has the number of one that ended"
