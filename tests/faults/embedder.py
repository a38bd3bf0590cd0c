"""The embedder fails in every way of an HTTP server: no wrong vector is stored, and requests stay within limits."""

import time
from typing import Any

from tests.faults.checks import check, settle
from tests.faults.folder import Folder, Sizes
from tests.faults.reader import Reader
from tests.faults.result import Result
from tests.faults.system import CONCURRENCY, Faulty

ONCE: tuple[tuple[str, dict[str, Any]], ...] = (
    ("too_few", {}),
    ("too_many", {}),
    ("shuffled", {}),
    ("nan", {}),
    ("zero", {}),
    ("dimension", {}),
    ("not_numbers", {}),
    ("malformed", {}),
    ("cut", {}),
    ("500", {}),
    ("429", {"retry_after": 1}),
)
LONG: tuple[tuple[str, dict[str, Any]], ...] = (("429", {"retry_after": 2}), ("500", {}), ("hang", {"seconds": 120}))
REQUESTS = 2  # requests per second for each document in work
SIZES = Sizes(small=(3, 28), middle_every=6, large_every=0)


def embedder(
    system: Faulty, times: int, documents: int, long_seconds: float, long: tuple[str, ...] = ("429", "500", "hang")
) -> Result:
    """Cause each fault several times while documents arrive. Then cause longer refusals, errors or silence."""
    result = Result("embedder")
    folder = Folder(system.folder, "embedder", 600_000, SIZES)
    system.standin.slow = (0.0, 0.1)
    most = len(system.workers) * CONCURRENCY * REQUESTS
    with Reader(system, [folder]) as reader:
        for name, options in ONCE:
            system.standin.misbehave(name, times=times, **options)
            for _ in range(documents):
                folder.add()
        settled: float | None = settle(system, 300)
        result.tell("spoiled answers", ", ".join(f"{times} × {name}" for name, _ in ONCE))
        result.settled(settled, 300)
        system.standin.behave()
        for name, options in LONG:
            if name not in long:
                continue
            started = time.monotonic()
            system.standin.misbehave(name, times=None, **options)
            for _ in range(documents * 4):
                folder.add()
            time.sleep(long_seconds)
            ended = time.monotonic()
            system.standin.behave()
            settled = settle(system, 120 + 2 * long_seconds)
            fastest, calm = system.standin.fastest(started, ended), system.standin.fastest((started + ended) / 2, ended)
            result.must(
                f"{name} for {long_seconds:.0f} s: requests a second at most",
                f"{fastest:.1f}",
                f"≤ {most}",
                fastest <= most,
            )
            result.tell(f"{name}: in the second half", f"{calm:.1f}")
            result.settled(settled, 120 + 2 * long_seconds)
            result.say(f"{name} is over; all ready after {settled}")
    ready = system.rows("SELECT count(*) FROM document WHERE starts_with(key, 'embedder/') AND state = 'ready'")[0][0]
    result.equal("documents ready", ready, len(folder.documents))
    result.damage(check(system, [folder]))
    result.reader(reader)
    system.standin.slow = (0.0, 0.0)
    return result.finish()
