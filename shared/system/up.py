"""`askfolder up`: start the embedded servers and the processes of the Procfile, show one screen, stop all in order.

This is a supervisor of our own because honcho stops all processes when one of them ends. Here, a process or a server
that ends by itself is started again, and the others go on.
"""

import contextlib
import fcntl
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx2

from shared import broker, client, db, keys
from shared.errors import SettingsError
from shared.providers import minilm, privacy
from shared.providers.choice import LOCAL_MODEL
from shared.settings import ROOT, Settings
from shared.system import processes as supervised
from shared.system.processes import Process
from shared.system.servers import Servers

READY_SECONDS = 60.0
FAILURES = 4  # of a server's restart, before the screen shows them
Say = Callable[[str], None]


def up(settings: Settings, say: Say) -> None:
    """Run everything until Ctrl-C, SIGTERM or SIGHUP. Raises SettingsError when it cannot start."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    with started(settings, say) as system:
        if system.ready(stop):
            say(_screen(settings))
        shown = ""
        while not stop.wait(0.2):
            problem = system.revive() or ""
            if problem and system.servers.failures > FAILURES and problem != shown:
                say(f"{problem}\naskfolder keeps trying to start it; questions and documents wait.")
                shown = problem
        say("\nStopping …")


@dataclass(frozen=True, slots=True)
class System:
    """The running servers and processes of one data folder."""

    settings: Settings
    servers: Servers
    processes: list[Process]

    def ready(self, stop: threading.Event) -> bool:
        """Wait until questions can be asked; False if `stop` was set before.

        Raises SettingsError with the last lines of the log when a process ends again and again.
        """
        deadline = time.monotonic() + READY_SECONDS
        with httpx2.Client(base_url=client.local_address(self.settings), trust_env=False, timeout=3) as http:
            while not stop.wait(0.05):
                with contextlib.suppress(httpx2.HTTPError):
                    if http.get("/readyz").status_code == 200:
                        return True
                for process in self.processes:
                    if process.ended() and process.starts >= 2:
                        ended = f"The process {process.name} ended at its start (log: {process.log})"
                        raise SettingsError(f"{ended}:\n{process.last_lines()}")
                supervised.restart_ended(self.processes)
                if time.monotonic() > deadline:
                    logs = self.settings.data / "logs"
                    raise SettingsError(f"askfolder was not ready within {READY_SECONDS:.0f} s; see {logs}.")
        return False

    def revive(self) -> str | None:
        """Start servers and processes again that ended. Return the problem while a server cannot start."""
        problem = self.servers.revive()
        supervised.restart_ended(self.processes)
        return problem


@contextlib.contextmanager
def started(
    settings: Settings, say: Say, without: tuple[str, ...] = (), env: Mapping[str, str] | None = None
) -> Iterator[System]:
    """Run the servers and the Procfile's processes; stop them in order at the end.

    `without`: names of processes to leave out; `env`: more environment variables of the processes.
    """
    with contextlib.ExitStack() as stack:
        _lock(settings, stack)
        _check_folder(settings)
        _check_ports(settings)
        servers = Servers(settings.data, postgres=not settings.database_url, valkey=not settings.redis_url)
        if servers.starts:
            stack.callback(servers.stop)
            servers.start()
        variables = {**_environment(settings, servers, say), **(env or {})}
        model = settings.data / LOCAL_MODEL
        if settings.embedder == "local" and not settings.embedding_model and not minilm.is_whole(model):
            say("Preparing the local embedder, once (some seconds) …")
            minilm.prepare(model)
        commands = [(name, command) for name, command in supervised.procfile() if name not in without]
        processes = [Process(name, command, variables, settings.data / "logs") for name, command in commands]
        stack.callback(supervised.stop, processes)
        for process in processes:
            process.start()
        yield System(settings, servers, processes)


def _lock(settings: Settings, stack: contextlib.ExitStack) -> None:
    try:
        settings.data.mkdir(mode=0o711, parents=True, exist_ok=True)
        (settings.data / "logs").mkdir(mode=0o700, exist_ok=True)
        lock = stack.enter_context((settings.data / "up.lock").open("a"))
    except OSError as error:
        raise SettingsError(
            f"The data folder {settings.data} cannot be written ({error.strerror}): give this user the right to write "
            "there, or set ASKFOLDER_DATA."
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SettingsError(
            f"askfolder is already running on {settings.data}. Stop it with Ctrl-C first, or set ASKFOLDER_DATA and "
            "the ports to run a second one."
        ) from None


def _check_folder(settings: Settings) -> None:
    inbox = settings.inbox
    if inbox == ROOT / "inbox":
        inbox.mkdir(exist_ok=True)
    try:
        str(inbox).encode()
        os.scandir(inbox).close()
    except UnicodeEncodeError:
        raise SettingsError(f"The name of the folder {inbox!r} is not UTF-8: rename it, or use another one.") from None
    except OSError as error:
        raise SettingsError(
            f"The folder {inbox} cannot be read ({error.strerror}): name another one with --inbox, or give this user "
            "the right to read it."
        ) from None
    if settings.data.is_relative_to(inbox) and not settings.data.name.startswith("."):
        raise SettingsError(f"The data folder {settings.data} lies in the folder {inbox}: move one of them.")


def _check_ports(settings: Settings) -> None:
    for name, host, port in (
        ("ASKFOLDER_PORT", settings.host, settings.port),
        ("ASKFOLDER_FLOWER_PORT", "127.0.0.1", settings.flower_port),
    ):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as test:
            test.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                test.bind((host, port))
            except OSError as error:
                reason = f"{host}:{port} cannot be used ({error.strerror}): choose another port with {name}."
                raise SettingsError(reason) from None


def _environment(settings: Settings, servers: Servers, say: Say) -> dict[str, str]:
    """Check the servers, migrate the database, and return the environment of the processes."""
    database, redis_url = settings.database_url or servers.database_url, settings.redis_url or servers.redis_url
    keys.key(settings)
    if settings.database_url:
        say(f"Database: {db.describe(database)}, schema askfolder")
    broker.check(redis_url)
    db.migrate(database)
    return {
        **os.environ,
        "DATABASE_URL": database,
        "REDIS_URL": redis_url,
        "ASKFOLDER_INBOX": str(settings.inbox),
        "ASKFOLDER_DATA": str(settings.data),
        "ASKFOLDER_HOST": settings.host,
        "ASKFOLDER_PORT": str(settings.port),
        "ASKFOLDER_FLOWER_PORT": str(settings.flower_port),
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
        # On SIGTERM, Celery waits for all tasks; on SIGQUIT, it hands unfinished ones back.
        "REMAP_SIGTERM": "SIGQUIT",
        "FLOWER_BASIC_AUTH": f"askfolder:{keys.flower_password(settings)}",
        "FLOWER_ADDRESS": "127.0.0.1",
        "FLOWER_PORT": str(settings.flower_port),
    }


def _screen(settings: Settings) -> str:
    description = privacy.describe(settings)
    password = keys.flower_password(settings)
    openai, local = (
        "OpenAI: ASKFOLDER_EMBEDDER=openai and OPENAI_API_KEY=…",
        "the local model: ASKFOLDER_EMBEDDER=local",
    )
    claude, quotes = "Claude: ANTHROPIC_API_KEY=…", "quotes only: ASKFOLDER_ANSWERER=extractive"
    embedder = f"to use {openai if settings.embedder == 'local' else local} in .env"
    answers = f"to use {quotes if settings.answers_with_claude() else claude} in .env"
    rows = (
        ("Ask", f"{client.local_address(settings)}/?key={keys.key(settings)}", ""),
        ("Flower", f"http://127.0.0.1:{settings.flower_port}/", f"user askfolder, password {password}"),
        ("Folder", description["inbox"], "to use another folder: ./askfolder up --inbox DIR"),
        ("Embedder", description["embedder"], embedder),
        ("Answers", description["answerer"], answers),
        ("Data sent to other services", description["leaves"], ""),
        ("Logs", str(settings.data / "logs"), ""),
    )
    lines = [f"  {name:<28} {value}" + (f"\n  {'':<28} ({hint})" if hint else "") for name, value, hint in rows]
    return "\n".join(
        (
            "\naskfolder is running; Ctrl-C stops it.\n",
            *lines,
            '\n  Drop files into the folder, then run: ./askfolder ask "What is askfolder?"\n',
        )
    )
