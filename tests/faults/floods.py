"""Many files at once while the producer is stopped, and hostile files."""

import contextlib
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator

import psutil

from tests.faults.checks import check, settle
from tests.faults.folder import SMALL, Folder, Sizes
from tests.faults.reader import Reader
from tests.faults.result import Result
from tests.faults.system import Faulty, wait
from tests.worker.hostile import write_hostile

WORKER_MB = 480
NOTE_SECONDS = 5.0


def stopped_producer(
    system: Faulty, files: int, notes: int, seconds: float = 1800, found: float = NOTE_SECONDS
) -> Result:
    """Create files while the producer is stopped: the kernel keeps 16,384 events, and a scan must find the other files.

    `found`: maximum seconds until a note is found.
    """
    result = Result("stopped producer")
    folder = Folder(system.folder, "flood", 400_000, Sizes(small=(1, 2), middle_every=0, large_every=0))
    producer = system.processes["producer"]
    producer.send_signal(signal.SIGSTOP)
    folder.fill(files)
    result.say(f"{files} files made; the producer goes on")
    started = time.monotonic()
    producer.send_signal(signal.SIGCONT)

    dropped: list[float | None] = []
    later: list[float | None] = []

    def enqueued() -> bool:
        return bool(system.rows("SELECT count(*) FROM document WHERE starts_with(key, 'flood/')")[0][0] >= files)

    with Reader(system, [folder], pause=0.5) as reader:
        (system.folder / "flood-notes").mkdir()
        first = threading.Thread(
            target=lambda: dropped.append(system.note("flood-notes/first.txt", "heronfirst", seconds))
        )
        first.start()
        took = time.monotonic() - started if wait(enqueued, 400) else None
        for number in range(notes):
            later.append(system.note(f"flood-notes/note{number}.txt", f"heronlater{number}", 60))
            result.say(f"note {number} is found after {later[-1]} s, {_queued(system)} documents wait")
        waiting = _queued(system)
        settled = settle(system, seconds)
        first.join()
    result.equal("files made while it was stopped", files, files)
    result.at_most("all of them are in the ledger after", took, 330, " s")
    worst = None if None in later else max(t for t in later if t is not None)
    result.at_most(f"worst of {notes} notes dropped meanwhile is found after", worst, found, " s")
    first_found = dropped[0] if dropped else None
    result.at_most(
        "a note dropped in the instant that it goes on, among all the rest, is found after", first_found, found, " s"
    )
    result.tell("documents that still waited after the last note", waiting)
    result.at_most("all are ready after", None if settled is None else time.monotonic() - started, seconds, " s")
    result.damage(check(system, [folder]))
    result.reader(reader)
    return result.finish()


def _queued(system: Faulty) -> int:
    return int(system.rows("SELECT count(*) FROM document WHERE state = 'queued'")[0][0])


def hostile(system: Faulty, good: int, most_hostile: int = 1000) -> Result:
    """Add bombs, mislabelled and broken files among good ones, and remove them at the end."""
    result = Result("hostile")
    folder = Folder(system.folder, "good", 500_000, SMALL)
    place = system.folder / "hostile"
    aside = system.folder.parent / "made"
    aside.mkdir()
    phrases = dict(list(write_hostile(aside).items())[:most_hostile])
    unreadable = {f"hostile/{name}": phrase for name, phrase in phrases.items()}
    limit = int(system.env.get("ASKFOLDER_PARSE_MEMORY_MB", 2048))
    with Reader(system, [folder]) as reader, _memory(system) as largest:
        folder.fill(good // 2)
        place.mkdir()
        for name in phrases:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(aside / name, place / name)
        folder.fill(good - good // 2)
        settled = settle(system, 600, unreadable)
    rows = system.rows(
        "SELECT key, state, error, attempts FROM document WHERE starts_with(key, 'hostile/') AND state <> 'deleted'"
    )
    states = Counter(row[1] for row in rows)
    refused = states["failed"] + states["quarantined"]
    result.must("hostile files set aside", f"{refused} of {len(unreadable)}", "all", refused == len(unreadable))
    result.tell("of these", ", ".join(f"{count} {state}" for state, count in states.items()))
    without = [
        row[0] for row in rows if row[0] in unreadable and unreadable[row[0]].lower() not in (row[2] or "").lower()
    ]
    result.equal("without the reason that is meant", len(without), 0)
    result.remarks += [f"{row[0]}: {row[2]}" for row in rows if row[0] in without][:8]
    result.at_most("attempts at most", max((row[3] for row in rows), default=None), 3)
    ready = system.rows("SELECT count(*) FROM document WHERE starts_with(key, 'good/') AND state = 'ready'")[0][0]
    result.must("good files ready", f"{ready} of {good}", "all", ready == good)
    result.at_most("memory of a worker process, at most", largest["worker"], WORKER_MB, " MiB")
    result.at_most("memory of a parser, at most", largest["parser"], limit, " MiB")
    result.settled(settled, 600)
    result.damage(check(system, [folder], unreadable))
    result.reader(reader)
    shutil.rmtree(place)
    shutil.rmtree(aside)
    system.reconcile(confirm=True)  # with few good files, this share of deletions needs a confirmation
    result.at_most("removed again, and forgotten, after", settle(system, 60), 60, " s")
    return result.finish()


@contextlib.contextmanager
def _memory(system: Faulty) -> Iterator[dict[str, float]]:
    """Measure the largest resident size, in MiB, of a pool child and of its own child processes."""
    largest = {"worker": 0.0, "parser": 0.0}
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.2):
            for pid in system.children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    child = psutil.Process(pid)
                    largest["worker"] = max(largest["worker"], child.memory_info().rss / 2**20)
                    for below in child.children(recursive=True):
                        with contextlib.suppress(psutil.NoSuchProcess):
                            largest["parser"] = max(largest["parser"], below.memory_info().rss / 2**20)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield largest
    finally:
        ended.set()
        thread.join()
