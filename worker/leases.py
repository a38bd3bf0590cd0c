"""In a worker's main process: what its processes held is handed back when they die; it takes work only of sources that it can read."""

import contextlib
import os
import re
import signal
import socket
from pathlib import Path
from typing import Any

import psycopg
from celery import bootsteps
from celery.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery.worker.request import Request

from shared import db
from shared.db import Connection
from shared.errors import AskfolderError
from shared.ledger import documents, sources
from shared.log import log
from worker.app import app, queue_of, settings

LOOK_SECONDS = 2.0
OUTSIDE = (
    signal.SIGKILL,
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
)  # nobody dies of a document by these
OUT_OF_MEMORY = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))  # … unless the kernel sent the SIGKILL


def name_of(pid: int, main: int | None = None) -> str:
    """How the ledger calls a process of this machine: host:pid of the worker, and :pid of its process that does the work."""
    return f"{socket.gethostname()}:{os.getpid() if main is None else main}:{pid}"


def blame(error: BaseException, out_of_memory: bool) -> str | None:
    """How a worker process died where its document may have done it; None when it was ended from outside."""
    if isinstance(error, TimeLimitExceeded):
        return "it never came to an end"
    found = re.search(r"signal (\d+)", str(error))
    if found is None or isinstance(error, Terminated):
        return None if isinstance(error, (Terminated, SystemExit)) else "it ended without a word"
    number = int(found[1])
    if number == signal.SIGKILL and out_of_memory:
        return "out of memory"
    return None if number in OUTSIDE else f"a crash, signal {number}"


class _Memory:
    """Whether the kernel killed a process for want of memory since the last question."""

    def __init__(self) -> None:
        self.kills = self._count()

    def ran_out(self) -> bool:
        before, self.kills = self.kills, self._count()
        return self.kills > before

    def _count(self) -> int:
        total = 0
        for path in OUT_OF_MEMORY:
            with contextlib.suppress(OSError):
                total += sum(
                    int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith("oom_kill ")
                )
        return total


_memory = _Memory()


class IngestRequest(Request):  # type: ignore[misc]
    """A task as the main process sees it: it learns first when the process that ran it is lost."""

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        error = getattr(exc_info.exception, "exc", exc_info.exception)
        if isinstance(error, (WorkerLostError, Terminated, SystemExit)):
            _hand_back([self.worker_pid], blame(error, _memory.ran_out()))
        return super().on_failure(exc_info, send_failed_event, return_ok)

    def on_timeout(self, soft: bool, timeout: float) -> Any:
        if not soft:
            _hand_back([self.worker_pid], blame(TimeLimitExceeded(timeout), False))
        return super().on_timeout(soft, timeout)


def _hand_back(pids: list[int], reason: str | None) -> None:
    """Without the database nothing happens: the leases run out by themselves."""
    with contextlib.suppress(psycopg.Error, AskfolderError), db.connect(settings.database_url, 2) as connection:
        if documents.hand_back(connection, [name_of(pid) for pid in pids], reason):
            log.warning(
                f"A worker process was lost ({reason or 'ended from outside'}); what it had goes back",
                action="lease.handed_back",
                pids=pids,
            )


def _hand_back_dead(connection: Connection) -> None:
    """Leases of processes of this machine that died together with their worker, which could not tell how."""
    dead = [name for name, main, pid in _holders(connection) if not _alive(main) and not _alive(pid)]
    if dead and documents.hand_back(connection, dead, "it ended with its worker"):
        log.warning(f"Processes died with their worker: {', '.join(dead)}", action="lease.handed_back")


def _holders(connection: Connection) -> list[tuple[str, int, int]]:
    """Processes of this machine that hold leases: name, pid of the worker, own pid."""
    here = f"{socket.gethostname()}:"
    rows = connection.execute(
        "SELECT DISTINCT worker FROM task WHERE leased_until > now() AND starts_with(worker, %s)", [here]
    ).fetchall()
    parts = [(name, name.removeprefix(here).split(":")) for (name,) in rows]
    return [(name, int(pids[0]), int(pids[1])) for name, pids in parts if len(pids) == 2]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


class Housekeeping(bootsteps.StartStopStep):  # type: ignore[misc]
    """Every two seconds: dead leases, readable sources, and a sign of life. It runs between the consumer's other work."""

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
        root, queue = str(settings.inbox), queue_of("folder", str(settings.inbox))
        if (reads := readable(settings.inbox)) != self.consumes:
            consumer.add_task_queue(queue) if reads else consumer.cancel_task_queue(queue)
            self.consumes = reads
            log.warning(
                f"The folder {root} {'is back: its documents are taken again' if reads else 'cannot be read: its documents wait'}",
                action="worker.source",
            )
        try:
            with db.connect(settings.database_url, 2) as connection:
                _hand_back_dead(connection)
                sources.worker_seen(connection, _worker(), settings.workers(), [root] if self.consumes else [])
        except (psycopg.Error, AskfolderError) as error:
            log.warning(f"The worker cannot reach the database: {error}", action="worker.no_database")


def readable(root: Path) -> bool:
    try:
        os.scandir(root).close()
    except OSError:
        return False
    return True


def left() -> None:
    """At the worker's end, when its processes have ended: what they did not finish goes back, uncounted."""
    with contextlib.suppress(psycopg.Error, AskfolderError), db.connect(settings.database_url, 2) as connection:
        ours = [name for name, main, pid in _holders(connection) if main == os.getpid() and not _alive(pid)]
        documents.hand_back(connection, ours)
        sources.worker_left(connection, _worker())


def _worker() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


app.steps["consumer"].add(Housekeeping)
