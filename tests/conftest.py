"""Real parts for the tests: embedded servers for a session, a database for each test, real processes on demand."""

import contextlib
import fcntl
import itertools
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import httpx2
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from shared import db
from shared.db import Connection
from shared.providers import minilm
from shared.providers.choice import LOCAL_MODEL
from shared.settings import ROOT
from shared.system.servers import Servers

KEY = "the-key-of-the-tests"
_databases = itertools.count()
_redis_databases = itertools.cycle(range(16))
_subfolders = itertools.count()


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    running = Servers(tmp_path_factory.mktemp("servers") / ".askfolder", durable=False)
    running.start()
    db.migrate(running.database_url)  # the database `askfolder` is the template that each test copies
    yield running
    running.stop()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Return the built-in embedder's files, built once for all processes of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    folder = base if worker_id == "master" else base.parent
    with (folder / "model.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return minilm.prepare(folder / LOCAL_MODEL)


@contextlib.contextmanager
def new_database(servers: Servers, template: str | None = None) -> Iterator[str]:
    """Create a database as a copy of `template` (a URL without open connections), and drop it at the end."""
    name = f"test_{next(_databases)}"
    original = conninfo_to_dict(template or servers.database_url)["dbname"]
    admin = servers.database_url.replace("/askfolder?", "/postgres?")
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {original}")
    yield servers.database_url.replace("/askfolder?", f"/{name}?")
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database_url(servers: Servers) -> Iterator[str]:
    with new_database(servers) as url:
        yield url


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    with db.connect(database_url) as connection:
        yield connection


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def until(check: Callable[[], Any], seconds: float = 30, pause: float = 0.05) -> Any:
    """Return the first true value of `check`. The test fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        if value := check():
            return value
        if time.monotonic() > deadline:
            pytest.fail(f"did not happen within {seconds} s: {check}")
        time.sleep(pause)


class Hang(BaseException):
    """The guarded block did not end. An `except Exception` of the code under test cannot swallow this exception."""


@contextlib.contextmanager
def hang_guard(seconds: int = 60) -> Iterator[None]:
    """Interrupt the block after `seconds` and fail the test. The guard works in the main thread only.

    The guard detects a hang and measures no duration: pass a generous time, and an input that takes a wrong method far
    longer.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Hang

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(seconds)
    try:
        yield
    except Hang:
        pytest.fail(f"the block did not end within {seconds} s")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


@dataclass
class System:
    """Real processes over a folder: producer, Celery worker, API."""

    folder: Path
    data: Path
    port: int
    env: dict[str, str]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, *names: str, **env: str) -> None:
        """Start processes of the Procfile; "worker:2" is another worker."""
        commands = dict(line.split(": ", 1) for line in (ROOT / "Procfile").read_text().splitlines())
        for name in names:
            kind, _, number = name.partition(":")
            command = [sys.executable if part == "python" else part for part in shlex.split(commands[kind])]
            command += ["--hostname", f"{kind}{number}@%h"] if number and kind == "worker" else []
            self.run(name, command, **env)
        if "web" in names:
            until(lambda: self.call("GET", "/healthz", quiet=True), 15)

    def run(self, name: str, command: list[str], **env: str) -> None:
        """Start a process that is stopped with the others."""
        with (self.data / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self.env | env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self, *names: str, number: int = signal.SIGTERM) -> None:
        for name in names or tuple(self.processes):
            if (process := self.processes.pop(name, None)) and process.poll() is None:
                process.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(8)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def call(
        self, method: str, path: str, json: object = None, quiet: bool = False, status: int = 200, **query: Any
    ) -> Any:
        """Return the API's answer as JSON; None if `quiet` and the server does not answer."""
        try:
            with httpx2.Client(trust_env=False, timeout=30) as client:
                response = client.request(
                    method,
                    f"http://127.0.0.1:{self.port}{path}",
                    json=json,
                    params=query,
                    headers={"Authorization": f"Bearer {KEY}"},
                )
        except httpx2.HTTPError:
            if quiet:
                return None
            raise
        if not quiet:
            assert response.status_code == status, response.text
        return response.json()

    def documents(self) -> dict[str, dict[str, Any]]:
        return {d["source"]: d for d in self.call("GET", "/documents", limit=1000)["documents"]}

    def settled(self, count: int | None = None, seconds: float = 60) -> dict[str, dict[str, Any]]:
        """Wait until no document is queued or ingesting (and there are `count` documents)."""

        def check() -> Any:
            rows = self.documents()
            busy = [d for d in rows.values() if d["state"] in ("queued", "ingesting")]
            return rows if not busy and (len(rows) >= 1 if count is None else len(rows) == count) else None

        result: dict[str, dict[str, Any]] = until(check, seconds)
        return result

    def search(self, query: str, **more: Any) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = self.call("POST", "/search", {"query": query, **more})["results"]
        return results

    def log(self, name: str) -> str:
        return (self.data / f"{name}.log").read_text(errors="replace")

    def share(self) -> "Share":
        """Create a subfolder for one test, and start the usual processes that are not running."""
        ended = [name for name, process in self.processes.items() if process.poll() is not None or ":" in name]
        self.stop(*ended) if ended else None
        self.start(*(name for name in ("web", "worker", "producer") if name not in self.processes))
        folder = self.folder / f"share{next(_subfolders)}"
        folder.mkdir()
        return Share(folder, self.data, self.port, self.env, self.processes)


class Share(System):
    """The part of a running system for one test: the documents of one subfolder, with names relative to it."""

    @property
    def prefix(self) -> str:
        return f"{self.folder.name}/"

    def documents(self) -> dict[str, dict[str, Any]]:
        rows = super().documents().items()
        return {key.removeprefix(self.prefix): row for key, row in rows if key.startswith(self.prefix)}

    def search(self, query: str, **more: Any) -> list[dict[str, Any]]:
        results = super().search(query, filters={"source": self.prefix}, **more)
        return [result | {"source": result["source"].removeprefix(self.prefix)} for result in results]


def new_system(servers: Servers, database_url: str, model: Path, folder: Path) -> System:
    """Return a system over an empty folder, without running processes."""
    inbox, data = folder / "inbox", folder / "data"
    inbox.mkdir()
    (data / "models").mkdir(parents=True)
    (data / LOCAL_MODEL).symlink_to(model)
    port = free_port()
    ours = ("ASKFOLDER_", "ANTHROPIC_", "OPENAI_", "VOYAGE_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)} | {
        "DATABASE_URL": database_url,
        "REDIS_URL": servers.redis_url.replace("db=0", f"db={next(_redis_databases)}"),
        "ASKFOLDER_INBOX": str(inbox),
        "ASKFOLDER_DATA": str(data),
        "ASKFOLDER_PORT": str(port),
        "ASKFOLDER_ADMIN_KEY": KEY,
        "ASKFOLDER_FLOWER_PORT": str(free_port()),
        "ASKFOLDER_CONCURRENCY": "2",
        "PYTHONPATH": str(ROOT),
        "REMAP_SIGTERM": "SIGQUIT",
    }
    return System(inbox, data, port, env)


@contextlib.contextmanager
def running_system(servers: Servers, model: Path, folder: Path, **env: str) -> Iterator[System]:
    """Run a system for all tests of a module; each test gets its own `Share`."""
    with new_database(servers) as url:
        system = new_system(servers, url, model, folder)
        system.env |= env
        try:
            yield system
        finally:
            system.stop()


@pytest.fixture
def system(servers: Servers, database_url: str, model: Path, tmp_path: Path) -> Iterator[System]:
    system = new_system(servers, database_url, model, tmp_path)
    yield system
    system.stop()
