"""`askfolder up`: the embedded servers, then the Procfile's processes, one calm screen, and an orderly end."""

import contextlib
import fcntl
import os
import signal
import socket
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx2

from shared import broker, db, keys
from shared.errors import SettingsError
from shared.providers import minilm, privacy
from shared.providers.choice import LOCAL_MODEL
from shared.settings import ROOT, Settings
from shared.system.processes import Process, end_process, procfile, revive
from shared.system.servers import Servers

READY_SECONDS = 60.0
Say = Callable[[str], None]


def up(settings: Settings, say: Say) -> None:
    """Runs everything until Ctrl-C, SIGTERM or SIGHUP. Raises SettingsError when it cannot start."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    with started(settings, say) as system:
        if system.ready(stop):
            say(_screen(settings))
        said = ""
        while not stop.wait(0.2):
            problem = system.revive() or ""
            if problem and system.servers.failures > 4 and problem != said:
                say(f"{problem}\nIt is tried again until it starts; questions and documents wait.")
                said = problem
        say("\nStopping …")


@dataclass(frozen=True, slots=True)
class System:
    """The servers and processes of one data folder, while they run."""

    settings: Settings
    servers: Servers
    processes: list[Process]

    def ready(self, stop: threading.Event) -> bool:
        return _ready(self.settings, self.processes, stop)

    def revive(self) -> str | None:
        """Starts again what ended by itself. Returns why a server could not start, while it can't."""
        problem = self.servers.revive()
        revive(self.processes)
        return problem


@contextlib.contextmanager
def started(
    settings: Settings, say: Say, without: tuple[str, ...] = (), more: Mapping[str, str] = types.MappingProxyType({})
) -> Iterator[System]:
    """The servers and the Procfile's processes, ended in order at the end. `more`: of the processes' environment."""
    with contextlib.ExitStack() as stack:
        _lock(settings, stack)
        _check_folder(settings)
        _check_ports(settings)
        servers = _servers(settings, stack)
        env = {**_environment(settings, servers, say), **more}
        if (
            settings.embedder == "local"
            and not settings.embedding_model
            and not minilm.is_whole(settings.data / LOCAL_MODEL)
        ):
            say("Preparing the local embedder, once (some seconds) …")
            minilm.prepare(settings.data / LOCAL_MODEL)
        logs = settings.data / "logs"
        processes = [Process(name, command, env, logs) for name, command in procfile() if name not in without]
        stack.callback(end_process, processes)
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
            f"The data folder {settings.data} cannot be written ({error.strerror}): give this user the right to, or set ASKFOLDER_DATA."
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SettingsError(
            f"askfolder is already running on {settings.data}. Stop that one with Ctrl-C first, or set ASKFOLDER_DATA (and ports) for a second one."
        ) from None


def _check_folder(settings: Settings) -> None:
    if settings.inbox == ROOT / "inbox":
        settings.inbox.mkdir(exist_ok=True)
    try:
        str(settings.inbox).encode()
        os.scandir(settings.inbox).close()
    except UnicodeEncodeError:
        raise SettingsError(
            f"The folder {settings.inbox!r} has a name that is not UTF-8: rename it, or name another."
        ) from None
    except OSError as error:
        raise SettingsError(
            f"The folder {settings.inbox} cannot be read ({error.strerror}): name another one with --inbox, or mend its permissions."
        ) from None
    if settings.data.is_relative_to(settings.inbox) and not settings.data.name.startswith("."):
        raise SettingsError(f"The data folder {settings.data} lies in the folder {settings.inbox}: move one of them.")


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
                raise SettingsError(
                    f"{host}:{port} cannot be used ({error.strerror}): choose another port with {name}."
                ) from None


def _servers(settings: Settings, stack: contextlib.ExitStack) -> Servers:
    """The embedded servers, started, as far as none are given."""
    servers = Servers(settings.data, postgres=not settings.database_url, valkey=not settings.redis_url)
    if servers.starts:
        stack.callback(servers.stop)
        servers.start()
    return servers


def _environment(settings: Settings, servers: Servers, say: Say) -> dict[str, str]:
    """Checks the servers, migrates, and returns what the processes need to know."""
    env = {
        **os.environ,
        "ASKFOLDER_INBOX": str(settings.inbox),
        "ASKFOLDER_DATA": str(settings.data),
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
        # Celery's own end of SIGTERM waits for all tasks; this one hands unfinished ones back.
        "REMAP_SIGTERM": "SIGQUIT",
        "FLOWER_BASIC_AUTH": f"askfolder:{keys.flower_password(settings)}",
        "FLOWER_ADDRESS": "127.0.0.1",
        "FLOWER_PORT": str(settings.flower_port),
    }
    keys.key(settings)
    database, redis_url = settings.database_url or servers.database_url, settings.redis_url or servers.redis_url
    if settings.database_url:
        say(f"Database: {db.describe(database)}, schema askfolder")
    broker.check(redis_url)
    db.migrate(database)
    return env | {"DATABASE_URL": database, "REDIS_URL": redis_url}


def _ready(settings: Settings, processes: list[Process], stop: threading.Event) -> bool:
    """Waits until questions can be asked. Raises SettingsError with a process's last words when it keeps ending."""
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    deadline = time.monotonic() + READY_SECONDS
    with httpx2.Client(
        base_url=f"http://{f'[{host}]' if ':' in host else host}:{settings.port}", trust_env=False, timeout=3
    ) as client:
        while not stop.wait(0.05):
            with contextlib.suppress(httpx2.HTTPError):
                if client.get("/readyz").status_code == 200:
                    return True
            for process in processes:
                if process.ended() and process.starts >= 2:
                    raise SettingsError(
                        f"The process {process.name} ended at its start (log: {process.log}):\n{process.last_words()}"
                    )
            revive(processes)
            if time.monotonic() > deadline:
                raise SettingsError(
                    f"askfolder was not ready within {READY_SECONDS:.0f} s; see {settings.data / 'logs'}."
                )
    return False


def _screen(settings: Settings) -> str:
    said = privacy.describe(settings)
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    rows = [
        ("Ask", f"http://{host}:{settings.port}/?key={keys.key(settings)}", ""),
        (
            "Flower",
            f"http://127.0.0.1:{settings.flower_port}/",
            f"user askfolder, password {keys.flower_password(settings)}",
        ),
        ("Folder", said["inbox"], "another: ./askfolder up --inbox DIR"),
        (
            "Embedder",
            said["embedder"],
            "OpenAI: ASKFOLDER_EMBEDDER=openai and OPENAI_API_KEY=… in .env"
            if settings.embedder == "local"
            else "local: ASKFOLDER_EMBEDDER=local in .env",
        ),
        (
            "Answers",
            said["answerer"],
            "quoted only: ASKFOLDER_ANSWERER=extractive in .env"
            if settings.answers_with_claude()
            else "Claude: ANTHROPIC_API_KEY=… in .env",
        ),
        ("Data sent to other services", said["leaves"], ""),
        ("Logs", str(settings.data / "logs"), ""),
    ]
    lines = [f"  {name:<28} {value}" + (f"\n  {'':<28} ({hint})" if hint else "") for name, value, hint in rows]
    return (
        "\naskfolder is running; Ctrl-C stops it.\n\n"
        + "\n".join(lines)
        + '\n\n  Drop files into the folder, then: ./askfolder ask "What is askfolder?"\n'
    )
