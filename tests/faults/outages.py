"""PostgreSQL stops at once; the queue is emptied, cut off or silent."""

import random
import signal
import time
from collections import Counter
from functools import partial
from typing import Any

from tests.faults.checks import check, settle
from tests.faults.folder import USUAL, Folder, Sizes
from tests.faults.kills import STAGES
from tests.faults.reader import Reader
from tests.faults.result import Result
from tests.faults.system import Faulty, wait


def postgres(
    system: Faulty,
    stops: int,
    documents: int,
    sizes: Sizes = USUAL,
    down: tuple[float, float] = (0.5, 5.0),
    up: tuple[float, float] = (3, 8),
) -> Result:
    """Stop PostgreSQL like a crash: without a checkpoint, with connections lost in the middle of a statement."""
    result = Result("postgres")
    folder = Folder(system.folder, "postgres", 200_000, sizes)
    chance = random.Random(5)
    busy: list[list[tuple[Any, ...]]] = []
    system.standin.forget()
    system.standin.slow = (0.05, 0.4)

    def leases(stage: str | None) -> list[tuple[Any, ...]]:
        return system.rows("SELECT stage FROM task WHERE lease IS NOT NULL AND stage = coalesce(%s, stage)", stage)

    with Reader(system, [folder]) as reader:
        for number in range(stops):
            for _ in range(documents // stops):
                folder.add()
            for _ in range(documents // stops // 2):
                folder.step()
            stage = STAGES[number % len(STAGES)]
            wait(partial(leases, stage), 4, 0.002)
            busy.append(leases(stage) or leases(None))
            process = system.servers.processes["postgres"]
            with reader.outage():
                system.held_back.add("postgres")
                process.send_signal(signal.SIGQUIT)
                process.wait()
                time.sleep(chance.uniform(*down))
                system.held_back.discard("postgres")
                back = wait(lambda: system.rows("SELECT 1"), 90)
            if not back:
                result.say("PostgreSQL did not come back")
            result.say(f"stopped {number + 1} times")
            time.sleep(chance.uniform(*up))
        settled = settle(system, 240)
    result.equal("stopped with SIGQUIT", stops, stops)
    stages = Counter(str(stage) for rows in busy for (stage,) in rows)
    result.must(
        "of these with leases held", sum(map(bool, busy)), f"≥ {stops // 2}", sum(map(bool, busy)) >= stops // 2
    )
    result.tell("leases held then, by stage", ", ".join(f"{count} {stage}" for stage, count in stages.items()))
    result.tell("meanwhile", ", ".join(f"{count} {what}" for what, count in folder.counts.items() if count))
    result.settled(settled)
    batch, again = system.standin.largest_batch, system.standin.paid_again()
    most = stops * batch * len(system.workers) * 2
    result.must("embeddings paid twice", again, f"≤ stops × processes × {batch} (the largest batch)", again <= most)
    result.damage(check(system, [folder]))
    result.reader(reader)
    result.tell("errors went on after an outage for", f"{reader.late:.1f} s")
    system.standin.slow = (0.0, 0.0)
    return result.finish()


def redis(
    system: Faulty, flushes: int, cuts: int, documents: int, sizes: Sizes = USUAL, hole: tuple[float, float] = (2, 12)
) -> Result:
    """Drop a note after each fault. The time until a search finds the note shows when the workers consume again."""
    result = Result("redis")
    assert system.proxy is not None
    folder = Folder(system.folder, "redis", 300_000, sizes)
    chance = random.Random(11)
    system.standin.slow = (0.05, 0.3)
    events = ["flush"] * flushes + ["cut", "black hole"] * (cuts // 2) + ["cut"] * (cuts % 2)
    chance.shuffle(events)
    seconds: dict[str, list[float | None]] = {"flush": [], "cut": [], "black hole": []}
    backlog: list[float | None] = []
    lost = 0
    with Reader(system, [folder]) as reader:
        for number, event in enumerate(events):
            new = [folder.add() for _ in range(max(1, documents // len(events)))]
            for _ in range(len(new) // 2):
                folder.step()
            time.sleep(chance.uniform(0.5, 1.0))  # the producer has published some of them
            if event == "flush":
                wait(lambda: _published(system), 1, 0.01)
                lost += _published(system)
                system.redis().flushall()
            elif event == "cut":
                system.proxy.cut(chance.choice((1.0, 0.5)))
            else:
                system.proxy.black_hole()
                time.sleep(chance.uniform(*hole))
                system.proxy.heal()
            took = system.note(f"redis/note{number:03}.txt", f"heronnote{number:03}", 120)
            seconds[event].append(took)
            if event == "flush":
                backlog.append(None if took is None else _rest(system, 120, took))
            result.say(f"{event}: a note is found after {'—' if took is None else f'{took:.1f} s'}")
        settled = settle(system, 240)
    for event, times in seconds.items():
        if times:
            worst = None if None in times else max(t for t in times if t is not None)
            result.at_most(f"{len(times)} × {event}: consuming again within", worst, 60, " s")
    result.tell("tasks that the flushes took", lost)
    if backlog:
        worst = None if None in backlog else max(t for t in backlog if t is not None)
        result.at_most("what a flush took with it is ingested within", worst, 60, " s")
    result.tell("meanwhile", ", ".join(f"{count} {what}" for what, count in folder.counts.items() if count))
    result.settled(settled)
    result.damage(check(system, [folder]))
    result.reader(reader)
    system.standin.slow = (0.0, 0.0)
    return result.finish()


def _published(system: Faulty) -> int:
    return int(system.rows("SELECT count(*) FROM task WHERE lease IS NULL")[0][0])


def _rest(system: Faulty, seconds: float, before: float) -> float | None:
    rest = settle(system, seconds)
    return None if rest is None else before + rest
