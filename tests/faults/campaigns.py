"""The eight campaigns, with the numbers of their full size and their scaling."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.system.servers import Servers
from tests.faults.away import source_away
from tests.faults.embedder import embedder
from tests.faults.floods import hostile, stopped_producer
from tests.faults.kills import kills
from tests.faults.outages import postgres, redis
from tests.faults.result import Result
from tests.faults.system import Faulty, running
from tests.faults.writers import writers


@dataclass(frozen=True, slots=True)
class Campaign:
    """A campaign. `full`: the numbers at size 1; `least`: the smallest useful numbers; `fixed`: never scaled."""

    title: str
    run: Callable[..., Result]
    full: dict[str, int]
    least: dict[str, int]
    fixed: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    mounted: bool = False

    def numbers(self, size: float) -> dict[str, int]:
        return {name: max(self.least[name], round(full * size)) for name, full in self.full.items()}


CAMPAIGNS = {
    "kills": Campaign(
        "kill -9 of worker processes, workers, the producer and the queue, while documents are added, changed, "
        "renamed, moved, copied and deleted",
        kills,
        {"kills": 500, "documents": 2000},
        {"kills": 12, "documents": 40},
    ),
    "postgres": Campaign(
        "PostgreSQL stopped at once and started again",
        postgres,
        {"stops": 20, "documents": 600},
        {"stops": 2, "documents": 24},
    ),
    "redis": Campaign(
        "The queue emptied, its connections cut or swallowed",
        redis,
        {"flushes": 10, "cuts": 50, "documents": 600},
        {"flushes": 1, "cuts": 3, "documents": 16},
    ),
    "producer": Campaign(
        "Files made while the producer is stopped",
        stopped_producer,
        {"files": 20_000, "notes": 20},
        {"files": 1000, "notes": 3},
    ),
    "hostile": Campaign(
        "Hostile files among good ones",
        hostile,
        {"good": 500},
        {"good": 10},
        env={"ASKFOLDER_PARSE_MEMORY_MB": "512", "ASKFOLDER_PARSE_SECONDS": "20"},
    ),
    "embedder": Campaign(
        "An embedder that refuses, fails, falls silent or answers wrongly",
        embedder,
        {"times": 10, "documents": 10, "long_seconds": 60},
        {"times": 1, "documents": 2, "long_seconds": 5},
    ),
    "writers": Campaign(
        "Writers that change the same documents all the while, and tasks that are sent twice",
        writers,
        {"documents": 50, "seconds": 300},
        {"documents": 5, "seconds": 5},
        {"writers": 8},
    ),
    "away": Campaign(
        "The source unmounted, most of its files removed, another one in its place",
        source_away,
        {"documents": 500},
        {"documents": 40},
        mounted=True,
    ),
}


def carry_out(names: Iterable[str], size: float, sabotage: str, servers: Servers, work: Path) -> Iterable[Result]:
    """Run each campaign on its own system, folder and database."""
    for name in names:
        campaign = CAMPAIGNS[name]
        print(f"{name}: {campaign.title}", flush=True)
        with running(servers, work / name, sabotage, mounted=campaign.mounted, env=campaign.env) as system:
            result = _run(campaign, system, campaign.numbers(size))
        result.name = name
        yield result


def _run(campaign: Campaign, system: Faulty, numbers: dict[str, int]) -> Result:
    result: Result = campaign.run(system, **numbers, **campaign.fixed)
    result.numbers = numbers
    return result
