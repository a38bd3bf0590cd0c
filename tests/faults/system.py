"""The system under test of the campaigns: its own servers, and real processes that are restarted after their end."""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import psutil
import psycopg
import redis

from shared import db
from shared.settings import ROOT
from shared.system.servers import Servers
from tests.conftest import KEY, System, new_database, new_system
from tests.faults.proxy import Proxy
from tests.faults.standin import DIMENSIONS, CountingStandin

T = TypeVar("T")
CONCURRENCY = 2  # documents in parallel in each worker


def wait(check: Callable[[], T], seconds: float, pause: float = 0.05) -> T | None:
    """Return the first true value of `check` within `seconds`, or None. Errors count as false."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(psycopg.OperationalError, httpx2.HTTPError, AssertionError):
            if value := check():
                return value
        if time.monotonic() > deadline:
            return None
        time.sleep(pause)


@dataclass
class Faulty(System):
    """Producer, API and workers w1, w2 … over a folder. Dead processes are restarted as by `askfolder up`."""

    servers: Servers = field(default_factory=lambda: Servers(Path()))
    standin: CountingStandin = field(default_factory=CountingStandin)
    proxy: Proxy | None = None
    database_url: str = ""
    worker_app: str = "worker.app"
    workers: tuple[str, ...] = ("w1", "w2")
    kept: set[str] = field(default_factory=set)
    held_back: set[str] = field(default_factory=set)  # not restarted for now: names, "postgres", "valkey"
    groups: set[int] = field(default_factory=set)
    began: float = field(default_factory=time.time)

    # --- processes ---

    def start(self, *names: str, **env: str) -> None:
        commands = dict(line.split(": ", 1) for line in (ROOT / "Procfile").read_text().splitlines())
        for name in names:
            command = commands["worker" if name in self.workers else name]
            parts = [sys.executable if part == "python" else part for part in shlex.split(command)]
            if name in self.workers:
                parts = [self.worker_app if part == "worker.app" else part for part in parts]
                parts += ["--hostname", f"{name}@%h"]
            with (self.data / f"{name}.log").open("ab") as log:
                process = subprocess.Popen(
                    parts,
                    cwd=ROOT,
                    env=self.env | env,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            self.processes[name] = process
            self.groups.add(process.pid)
            self.kept.add(name)

    def stop(self, *names: str, number: int = signal.SIGTERM) -> None:
        self.kept -= set(names or tuple(self.processes))
        super().stop(*names, number=number)

    def revive(self) -> None:
        """Restart dead processes, except those in `held_back`."""
        for name in sorted(self.kept - self.held_back):
            if self.processes[name].poll() is not None:
                self.start(name)
        for name in self.servers.processes.keys() & self.held_back:
            if self.servers.processes[name].poll() is not None:
                return  # Servers.revive would start this server too
        self.servers.revive()

    def main(self, name: str) -> psutil.Process | None:
        """Return a running process of the Procfile."""
        with contextlib.suppress(psutil.NoSuchProcess, KeyError):
            process = psutil.Process(self.processes[name].pid)
            if process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None

    def children(self) -> dict[int, str]:
        """Return the pid of each pool child → its worker's name."""
        found: dict[int, str] = {}
        for name in self.workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                if main := self.main(name):
                    found |= {child.pid: name for child in main.children() if "celery" in " ".join(child.cmdline())}
        return found

    def left_behind(self) -> list[psutil.Process]:
        """Return our processes whose main process has ended."""
        alive = {process.pid for process in self.processes.values()}
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError, PermissionError):
                ours = os.getpgid(process.pid) in self.groups - alive and process.create_time() >= self.began
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    # --- queries ---

    @contextlib.contextmanager
    def database(self) -> Iterator[psycopg.Connection[Any]]:
        with psycopg.connect(self.database_url, autocommit=True, connect_timeout=5) as connection:
            connection.execute("SET search_path = askfolder, public")
            yield connection

    def rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with self.database() as connection:
            return connection.execute(query, parameters).fetchall()

    def redis(self) -> "redis.Redis":
        """Connect to the server directly, not through the proxy."""
        return redis.Redis.from_url(self.servers.redis_url)

    def client(self) -> httpx2.Client:
        return httpx2.Client(
            base_url=f"http://127.0.0.1:{self.port}",
            headers={"Authorization": f"Bearer {KEY}"},
            trust_env=False,
            timeout=30,
        )

    def problems(self) -> list[str]:
        found: list[str] = self.call("GET", "/documents", limit=1)["problems"]
        return found

    def reconcile(self, confirm: bool = False) -> None:
        with self.client() as client:
            client.post("/reconcile", json={"confirm": confirm}).raise_for_status()

    def searchable(self, key: str, words: str) -> bool:
        found = self.search(words, mode="lexical", filters={"source": key})
        return any(words in result["content"] for result in found)

    def note(self, name: str, words: str, seconds: float) -> float | None:
        """Drop a note of one kilobyte. Return the seconds until a search finds the note, or None after a timeout."""
        text = f"{words}\n\n" + "\n".join(f"{words} stands in line {n}." for n in range(900 // (len(words) + 18)))
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        (self.folder / name).write_text(text)
        return time.monotonic() - started if wait(lambda: self.searchable(name, words), seconds, 0.1) else None


@contextlib.contextmanager
def supervised(system: Faulty) -> Iterator[None]:
    """Restart dead processes in a thread inside the block."""
    ended = threading.Event()

    def keep() -> None:
        while not ended.wait(0.1):
            system.revive()

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextlib.contextmanager
def running(
    servers: Servers,
    work: Path,
    sabotage: str = "",
    workers: int = 2,
    mounted: bool = False,
    env: Mapping[str, str] | None = None,
) -> Iterator[Faulty]:
    """Run and supervise a system with its own folder and database, its Redis behind a proxy.

    `mounted`: the folder is a bind mount, if this user may make one.
    """
    work.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(new_database(servers))
        standin = stack.enter_context(CountingStandin())
        proxy = stack.enter_context(Proxy(servers.sockets / "valkey.sock"))
        plain = new_system(servers, url, Path("/dev/null"), work)  # no local model, because the stand-in embeds
        system = Faulty(
            plain.folder,
            plain.data,
            plain.port,
            plain.env,
            servers=servers,
            standin=standin,
            proxy=proxy,
            database_url=url,
            workers=tuple(f"w{n + 1}" for n in range(workers)),
        )
        number = plain.env["REDIS_URL"].rpartition("=")[2]
        system.env |= {
            "REDIS_URL": f"redis://127.0.0.1:{proxy.port}/{number}",
            "ASKFOLDER_CONCURRENCY": str(CONCURRENCY),
            "ASKFOLDER_EMBEDDER": "openai",
            "OPENAI_API_KEY": "sk-test",
            "OPENAI_BASE_URL": standin.url,
            "ASKFOLDER_EMBEDDING_DIMENSIONS": str(DIMENSIONS),
            "PYTHONUNBUFFERED": "1",
        }
        system.env |= env or {}
        if sabotage:
            system.worker_app = "tests.faults.sabotage"
            system.env["FAULTS_SABOTAGE"] = sabotage
        if mounted:
            stack.enter_context(_mount(system.folder))
        stack.callback(_end, system)
        stack.enter_context(supervised(system))
        system.start("producer", *system.workers, "web")
        if wait(lambda: (system.call("GET", "/readyz", quiet=True) or {}).get("status") == "ready", 60) is None:
            words = "\n".join(system.log(name).strip()[-300:] for name in system.processes)
            raise RuntimeError(f"The system did not start; its last log lines:\n{words}")
        yield system


@contextlib.contextmanager
def _mount(folder: Path) -> Iterator[None]:
    backing = folder.with_name("backing")
    backing.mkdir()
    bind = ["mount", "--bind", str(backing), str(folder)]
    made = shutil.which("mount") is not None and subprocess.run(bind, capture_output=True).returncode == 0
    if not made:
        backing.rmdir()
    try:
        yield
    finally:
        if made:
            subprocess.run(["umount", "--lazy", str(folder)], capture_output=True)


def _end(system: Faulty) -> None:
    system.stop()
    for process in system.left_behind():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


@contextlib.contextmanager
def started_servers(work: Path) -> Iterator[Servers]:
    """Start embedded servers whose data survives a kill: PostgreSQL runs with fsync."""
    servers = Servers(work / ".askfolder", durable=True)
    servers.start()
    try:
        db.migrate(servers.database_url)  # the database `askfolder` is the template that each campaign copies
        yield servers
    finally:
        servers.stop()
