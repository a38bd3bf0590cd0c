"""docs/reliability.md: the figures of a run, with the date, the machine and the command."""

import datetime
import os
import platform
import shlex
from collections.abc import Sequence
from pathlib import Path

import psutil

from tests.faults.campaigns import CAMPAIGNS
from tests.faults.checks import KINDS
from tests.faults.result import Result

GUARDS = ("fence",)  # that tests/faults/sabotage.py can switch off
INTRODUCTION = """# Reliability

What happens when things die: `make faults` breaks a running system on purpose and then compares every document, chunk, vector and answer
with the files in the folder. Someone searches all the while. This page was written by the command; run it to get your own.
"""


def write(path: Path, results: Sequence[Result], size: float, arguments: Sequence[str]) -> None:
    command = shlex.join(["python", "-m", "tests.faults", *arguments])
    minutes = sum(result.seconds for result in results) / 60
    parts = [
        INTRODUCTION,
        f"- **When and how**: {datetime.date.today().isoformat()}, `{command}`, {minutes:.0f} minutes",
        f"- **Machine**: {machine()}",
        f"- **Size**: {_size(size)}",
        f"- **Result**: {_verdict(results)}",
        "",
        *(_campaign(result, size) for result in results),
        "## What the rows mean\n",
        *(f"- *{kind}*: {meaning}" for kind, meaning in KINDS.items()),
        "",
    ]
    path.write_text("\n".join(parts))


def machine() -> str:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        model = next(
            (line.partition(": ")[2] for line in cpuinfo.read_text().splitlines() if line.startswith("model name")),
            model,
        )
    memory = psutil.virtual_memory().total / 2**30
    return f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, {platform.system()} {platform.machine()}, Python {platform.python_version()}"


def _size(size: float) -> str:
    return "full" if size >= 1 else f"shortened: {size:.0%} of the full campaign (some numbers have a least size)"


def _verdict(results: Sequence[Result]) -> str:
    broken = [result.name for result in results if not result.ok]
    return f"does not hold: {', '.join(broken)}" if broken else "all that must hold holds"


def _campaign(result: Result, size: float) -> str:
    campaign = CAMPAIGNS[result.name]
    full = {**campaign.full, **campaign.fixed}
    numbers = ", ".join(
        f"{name.replace('_', ' ')} {value:,}" + (f" (full: {full[name]:,})" if value != full[name] else "")
        for name, value in result.numbers.items()
    )
    rows = [
        f"| {figure.what} | {figure.value} | {figure.must} | {('yes' if figure.holds else '**NO**') if figure.must else ''} |"
        for figure in result.figures
    ]
    remarks = [f"- {remark}" for remark in result.remarks]
    return "\n".join(
        [
            f"## {campaign.title}\n",
            f"`{result.name}`: {numbers}; {result.seconds:.0f} s.\n",
            "| figure | measured | must hold | holds |",
            "|---|---|---|---|",
            *rows,
            "",
            *remarks,
            *([""] if remarks else []),
        ]
    )
