"""Write docs/reliability.md: the figures of a run, with the date, the machine and the command."""

import datetime
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path

import psutil

from tests.faults.campaigns import CAMPAIGNS
from tests.faults.checks import KINDS
from tests.faults.result import Result

GUARDS = ("fence",)  # guards that tests/faults/sabotage.py can switch off
INTRODUCTION = """# Reliability

`make faults` breaks a running system on purpose, and then compares every document, chunk, vector and answer with the
files in the folder. A client searches all the time. Each section was written by the command that it names; size 1 is
the full campaign.
"""


def write(path: Path, results: Sequence[Result], size: float, sabotage: str = "") -> None:
    """Write the results of these campaigns, and keep the figures of the others."""
    sections = dict(
        re.findall(r"<!-- (\w+) -->\n(.*?)(?=\n<!-- |\Z)", path.read_text() if path.exists() else "", re.DOTALL)
    )
    for result in results:
        sections[f"{result.name}_without_{sabotage}" if sabotage else result.name] = _campaign(result, size, sabotage)
    names = [*CAMPAIGNS, *(f"{name}_without_{guard}" for name in CAMPAIGNS for guard in GUARDS)]
    sections["rows"] = "\n".join(
        ["## What the rows mean\n", *(f"- *{kind}*: {meaning}" for kind, meaning in KINDS.items())]
    )
    found = [f"<!-- {name} -->\n{sections[name].strip()}\n" for name in [*names, "rows"] if name in sections]
    path.write_text("\n".join([INTRODUCTION, *found]))


def machine() -> str:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        model = next(
            (line.partition(": ")[2] for line in cpuinfo.read_text().splitlines() if line.startswith("model name")),
            model,
        )
    memory = psutil.virtual_memory().total / 2**30
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, {system}"


def _campaign(result: Result, size: float, sabotage: str) -> str:
    campaign = CAMPAIGNS[result.name]
    full = {**campaign.full, **campaign.fixed}
    numbers = ", ".join(
        f"{name.replace('_', ' ')} {value:,}" + (f" (full: {full[name]:,})" if value != full[name] else "")
        for name, value in result.numbers.items()
    )
    command = f"python -m tests.faults {result.name} --size {size:g}" + (f" --sabotage {sabotage}" if sabotage else "")
    verdicts = [("yes" if figure.holds else "**NO**") if figure.must else "" for figure in result.figures]
    rows = [
        f"| {figure.what} | {figure.value} | {figure.must} | {verdict} |"
        for figure, verdict in zip(result.figures, verdicts, strict=True)
    ]
    remarks = [f"- {remark}" for remark in result.remarks]
    return "\n".join(
        [
            f"## {campaign.title}{f', with the {sabotage} switched off: damage must be found' if sabotage else ''}\n",
            f"`{command}`: {numbers}; {result.seconds / 60:.1f} minutes on {datetime.date.today().isoformat()}, "
            f"{machine()}.\n",
            "| figure | measured | must hold | holds |",
            "|---|---|---|---|",
            *rows,
            "",
            *remarks,
            *([""] if remarks else []),
        ]
    )
