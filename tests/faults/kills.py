"""kill -9 of worker processes, workers, the producer and the queue, while documents change."""

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import psutil

from tests.faults.checks import check, settle
from tests.faults.folder import USUAL, Folder, Sizes
from tests.faults.reader import Reader
from tests.faults.result import Result
from tests.faults.system import Faulty, wait

STAGES = ("parsing", "chunking", "embedding", "storing")
SHARES: dict[str, float] = {
    "worker process": 0.77,
    "worker, its processes go on": 0.05,
    "worker with its processes": 0.05,
    "producer": 0.09,
    "queue": 0.04,
}
BACKLOG = 16  # waiting documents, so that there is always one in work
PATIENCE = 10.0  # seconds to look for a process that holds a lease


class Killer:
    """Kill one process at a time. `hits`: stage → kills of a lease's holder; `kinds`: kind of process → kills."""

    def __init__(self, system: Faulty, shares: dict[str, float], seed: int = 3) -> None:
        self.system, self.shares = system, shares
        self.random = random.Random(seed)
        self.feed: Callable[[], None] = lambda: None  # called when there is too little work to hit
        self.fed = 0.0
        self.hits: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()

    def plan(self, kills: int) -> list[str]:
        kinds = [kind for kind, share in self.shares.items() for _ in range(max(1, round(kills * share)))]
        self.random.shuffle(kinds)
        return (kinds + ["worker process"] * kills)[:kills]

    def kill(self, kind: str) -> bool:
        """Kill a process of this kind. Return False if no suitable process was found."""
        if kind == "worker process":
            done = self._kill_process()
        elif kind == "queue":
            self.system.servers.processes["valkey"].kill()
            done = True
        elif kind == "producer":
            done = self._end("producer", group=False)
        else:
            done = self._kill_worker(group=kind == "worker with its processes")
        self.kinds[kind] += done
        return done

    def _kill_process(self) -> bool:
        """Stop a worker's process to read its lease, then kill it."""
        deadline = time.monotonic() + PATIENCE
        rarest = sorted(STAGES, key=lambda stage: (self.hits[stage], self.random.random()))
        with self.system.database() as connection:
            for stage in rarest:
                until = min(deadline, time.monotonic() + PATIENCE / len(STAGES))
                while time.monotonic() < until:
                    leases = _leases_at(connection, stage)
                    if not leases and time.monotonic() > self.fed + 0.5 and _waiting(self.system) < BACKLOG:
                        self.fed = time.monotonic()
                        self.feed()
                    children = self.system.children() if leases else {}
                    for document, lease, worker in leases:
                        pid = int(worker.rpartition(":")[2])
                        if pid in children and _stopped_at(connection, pid, document, lease, stage):
                            os.kill(pid, signal.SIGKILL)
                            self._count(connection, [(pid, document, lease, stage)])
                            return True
                    time.sleep(0.004)
        return False

    def _kill_worker(self, group: bool) -> bool:
        name = self.random.choice(self.system.workers)
        with self.system.database() as connection:
            pids = [pid for pid, worker in self.system.children().items() if worker == name]
            leases = [
                (pid, document, lease, stage)
                for stage in STAGES
                for document, lease, worker in _leases_at(connection, stage)
                if (pid := int(worker.rpartition(":")[2])) in pids
            ]
            done = self._end(name, group)
            if done and group:
                self._count(connection, leases[:1])  # count one hit for each kill
            return done

    def _end(self, name: str, group: bool) -> bool:
        if main := self.system.main(name):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(main.pid, signal.SIGKILL) if group else os.kill(main.pid, signal.SIGKILL)
                return True
        return False

    def _count(self, connection: Any, leases: list[tuple[int, int, Any, str]]) -> None:
        """Count a kill as a hit, unless the database finished the work anyway."""
        for pid, document, lease, stage in leases:
            wait(partial(_gone, pid), 2, 0.002)
            row = connection.execute(
                "SELECT lease, state FROM document LEFT JOIN task ON document_id = id WHERE id = %s", [document]
            ).fetchone()
            if row and (row[0] == lease or row[1] in ("queued", "ingesting")):
                self.hits[stage] += 1


def _leases_at(connection: Any, stage: str) -> list[tuple[int, Any, str]]:
    """Return (document, lease, worker) of the leases at a stage."""
    rows: list[tuple[int, Any, str]] = connection.execute(
        "SELECT document_id, lease, worker FROM task WHERE leased_until > now() AND worker IS NOT NULL AND stage = %s",
        [stage],
    ).fetchall()
    return rows


def _stopped_at(connection: Any, pid: int, document: int, lease: Any, stage: str) -> bool:
    """Stop a process. Return True if it still holds this lease at this stage; otherwise let it continue."""
    try:
        os.kill(pid, signal.SIGSTOP)
        wait(lambda: _status(pid) == psutil.STATUS_STOPPED, 0.5, 0.001)
        row = connection.execute("SELECT lease, stage FROM task WHERE document_id = %s", [document]).fetchone()
        if row == (lease, stage):
            return True
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        pass
    return False


def _gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or _status(pid) == psutil.STATUS_ZOMBIE


def _status(pid: int) -> str:
    try:
        return str(psutil.Process(pid).status())
    except psutil.NoSuchProcess:
        return ""


class Writer(threading.Thread):
    """Add and change documents, up to the number of allowed operations. `done`: operations so far."""

    def __init__(self, folder: Folder, documents: int) -> None:
        super().__init__(daemon=True)
        self.folder = folder
        self.total = documents * 2  # each added document brings one further operation
        self.documents = documents
        self.allowed = self.done = 0  # numbers of operations
        self.ended = threading.Event()

    def more(self) -> None:
        self.allowed += 6

    def run(self) -> None:
        while not self.ended.is_set():
            if self.done >= self.allowed:
                time.sleep(0.01)
                continue
            behind = self.folder.counts["added"] < self.documents and self.done % 2 == 0
            self.folder.add() if behind or len(self.folder.documents) < 4 else self.folder.step()
            self.done += 1


def kills(
    system: Faulty,
    kills: int,
    documents: int,
    sizes: Sizes = USUAL,
    pause: float = 0.6,
    slow: tuple[float, float] = (0.05, 0.6),
    shares: dict[str, float] = SHARES,
) -> Result:
    """Kill processes while a writer works. The writer stays a few operations ahead of the killer."""
    result = Result("kills")
    folder = Folder(system.folder, "kills", 100_000, sizes)
    killer = Killer(system, shares)
    system.standin.forget()
    system.standin.slow = slow
    writer = Writer(folder, documents)
    killer.feed = writer.more
    with Reader(system, [folder]) as reader:
        writer.start()
        writer.allowed = min(writer.total, 60)
        wait(lambda: _waiting(system), 30)
        planned, tries = killer.plan(kills), 0
        while planned and tries < kills * 2:
            tries += 1
            share = (kills - len(planned) + 1) / kills
            writer.allowed = max(writer.allowed, round(writer.total * share))
            wait(lambda: writer.allowed - writer.done < 30 and _waiting(system) < 4 * BACKLOG, 60)
            if killer.kill(planned[-1]):
                planned.pop()
                if (kills - len(planned)) % max(1, kills // 20) == 0:
                    result.say(
                        f"{kills - len(planned)} kills, hits {dict(killer.hits)}, {_waiting(system)} documents wait"
                    )
            time.sleep(pause * killer.random.uniform(0.3, 1.7))
        last_kill = time.monotonic()
        writer.allowed = max(writer.allowed, writer.total)
        wait(lambda: writer.done >= writer.allowed, 120)
        writer.ended.set()
        writer.join()
        written = time.monotonic() - last_kill
        rest = settle(system, 240)
        settled = None if rest is None else written + rest
    hits = sum(killer.hits.values())
    result.equal("kills", sum(killer.kinds.values()), kills)
    result.tell("of", ", ".join(f"{kind} {count}" for kind, count in killer.kinds.most_common()))
    result.must("into a held lease", hits, f"≥ {round(kills * 0.6)}", hits >= round(kills * 0.6))
    for stage in STAGES:
        result.must(f"while {stage}", killer.hits[stage], "> 0", killer.hits[stage] > 0)
    result.tell("meanwhile", ", ".join(f"{count} {what}" for what, count in folder.counts.items() if count))
    result.settled(settled)
    batch, again = system.standin.largest_batch, system.standin.paid_again()
    result.must(
        "embeddings paid twice",
        f"{again} of {len(system.standin.paid)}",
        f"≤ kills × {batch} (the largest batch)",
        again <= kills * batch,
    )
    quarantined = system.rows(
        "SELECT count(*) FROM document WHERE state = 'quarantined' AND starts_with(key, 'kills/')"
    )
    result.equal("quarantined", quarantined[0][0], 0)
    left = system.left_behind()
    result.equal("processes left behind", len(left), 0)
    result.remarks += [
        f"{' '.join(process.cmdline()[:6])} ({process.status()})" for process in left[:3] if process.is_running()
    ]
    result.damage(check(system, [folder]))
    result.reader(reader)
    system.standin.slow = (0.0, 0.0)
    return result.finish()


def _waiting(system: Faulty) -> int:
    return int(system.rows("SELECT count(*) FROM document WHERE state IN ('queued', 'ingesting')")[0][0])
