"""A worker's main process hands back the leases of lost processes, and consumes only queues of readable sources."""

import contextlib
import os
import re
import signal
import socket
from pathlib import Path
from typing import Any

import psutil
import psycopg
from celery import bootsteps
from celery.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery.worker.request import Request

from shared import db
from shared.db import Connection
from shared.errors import AskfolderError
from shared.ledger import documents, sources
from shared.log import log
from shared.settings import Settings
from worker.app import queue_of

LOOK_SECONDS = 2.0
# Signals sent from outside, never the document's fault, except a SIGKILL by the kernel when memory runs out.
OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
OUT_OF_MEMORY = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))


def name_of(pid: int, main: int | None = None) -> str:
    """Return the name of a process of this machine in the ledger: host:pid of the worker:own pid."""
    return f"{worker_name(main)}:{pid}"


def worker_name(main: int | None = None) -> str:
    return f"{socket.gethostname()}:{os.getpid() if main is None else main}"


def blame(error: BaseException, out_of_memory: bool) -> str | None:
    """Return how a worker process died if its document may be the cause, None if the process was ended from outside."""
    if isinstance(error, TimeLimitExceeded):
        return "it exceeded the time limit"
    if isinstance(error, (Terminated, SystemExit)):
        return None
    if (match := re.search(r"signal (\d+)", str(error))) is None:
        return "the process exited without a reason"
    if (number := int(match[1])) in OUTSIDE:
        return "out of memory" if number == signal.SIGKILL and out_of_memory else None
    return f"a crash, signal {number}"


def hand_back_dead(connection: Connection) -> None:
    """Hand back leases of this machine's processes that died together with their worker."""
    dead = [
        name for name, main, pid in _holders(connection) if not psutil.pid_exists(main) and not psutil.pid_exists(pid)
    ]
    if dead and documents.hand_back(connection, dead, "it ended with its worker"):
        log.warning(f"Processes died with their worker: {', '.join(dead)}", action="lease.handed_back")


def _holders(connection: Connection) -> list[tuple[str, int, int]]:
    """Return the processes of this machine that hold leases: name, pid of the worker, own pid."""
    host = f"{socket.gethostname()}:"
    rows = connection.execute(
        "SELECT DISTINCT worker FROM task WHERE leased_until > now() AND starts_with(worker, %s)", [host]
    ).fetchall()
    parts = [(name, name.removeprefix(host).split(":")) for (name,) in rows]
    return [(name, int(pids[0]), int(pids[1])) for name, pids in parts if len(pids) == 2]


def is_readable(root: Path) -> bool:
    try:
        os.scandir(root).close()
    except OSError:
        return False
    return True


def out_of_memory_kills() -> int:
    """Return the kernel's count of processes killed because memory ran out."""
    kills = 0
    for path in OUT_OF_MEMORY:
        with contextlib.suppress(OSError):
            lines = path.read_text().splitlines()
            kills += sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    return kills


class Leases:
    """The leases of a worker's processes. Without the database nothing is handed back: leases run out by themselves."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.kills = out_of_memory_kills()

    def ran_out_of_memory(self) -> bool:
        """True if the kernel killed a process since the last call."""
        before, self.kills = self.kills, out_of_memory_kills()
        return self.kills > before

    def connect(self) -> Connection:
        return db.connect(self.settings.database_url, 2)

    def hand_back(self, pid: int, reason: str | None) -> None:
        """Hand back the lease of a lost process. `reason`: None if it was ended from outside."""
        with contextlib.suppress(psycopg.Error, AskfolderError), self.connect() as connection:
            if documents.hand_back(connection, [name_of(pid)], reason):
                sentence = f"Lost a worker process ({reason or 'ended from outside'}); its document is handed back"
                log.warning(sentence, action="lease.handed_back", pids=[pid])

    def end(self) -> None:
        """Hand back unfinished documents, uncounted, at the worker's end, when its processes have ended."""
        with contextlib.suppress(psycopg.Error, AskfolderError), self.connect() as connection:
            ours = [(name, pid) for name, main, pid in _holders(connection) if main == os.getpid()]
            documents.hand_back(connection, [name for name, pid in ours if not psutil.pid_exists(pid)])
            sources.worker_left(connection, worker_name())


class IngestRequest(Request):  # type: ignore[misc]
    """A task in the main process, which is the first to learn that the task's process is lost."""

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        error = getattr(exc_info.exception, "exc", exc_info.exception)
        if isinstance(error, (WorkerLostError, Terminated, SystemExit)):
            leases: Leases = self.app.leases
            leases.hand_back(self.worker_pid, blame(error, leases.ran_out_of_memory()))
        return super().on_failure(exc_info, send_failed_event, return_ok)

    def on_timeout(self, soft: bool, timeout: float) -> Any:
        if not soft:
            self.app.leases.hand_back(self.worker_pid, blame(TimeLimitExceeded(timeout), False))
        return super().on_timeout(soft, timeout)


class Housekeeping(bootsteps.StartStopStep):  # type: ignore[misc]
    """Every two seconds, hand back dead leases, check that the source is readable, and record a sign of life."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self.timer: Any = None
        self.consumes = True

    def start(self, consumer: Any) -> None:
        self.consumes = True
        self.timer = consumer.timer.call_repeatedly(LOOK_SECONDS, self.look, (consumer,))
        self.look(consumer)

    def stop(self, consumer: Any) -> None:
        if self.timer:
            self.timer.cancel()
            self.timer = None

    def look(self, consumer: Any) -> None:
        leases: Leases = consumer.app.leases
        settings, root = leases.settings, str(leases.settings.inbox)
        if (reads := is_readable(settings.inbox)) != self.consumes:
            queue = queue_of("folder", root)
            consumer.add_task_queue(queue) if reads else consumer.cancel_task_queue(queue)
            self.consumes = reads
            change = "is back: its documents are ingested again" if reads else "cannot be read: its documents wait"
            log.warning(f"The folder {root} {change}", action="worker.source")
        try:
            with leases.connect() as connection:
                hand_back_dead(connection)
                sources.worker_seen(connection, worker_name(), settings.workers(), [root] if reads else [])
        except (psycopg.Error, AskfolderError) as error:
            log.warning(f"The worker cannot reach the database: {error}", action="worker.no_database")
