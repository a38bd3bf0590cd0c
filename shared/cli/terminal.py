"""Output of the command line: progress, states, places, prices."""

from typing import Any

import click

from shared.client import Client
from shared.errors import AskfolderError
from shared.settings import load
from shared.text.printable import printable


def progress_of(load: dict[str, Any]) -> str:
    """How long, how fast, how long to go; as far as it is known."""
    parts = [f"{load['waiting']} to go, the oldest since {_span(load['oldest_seconds'])}"]
    if load["per_minute"]:
        parts.append(f"{load['per_minute']:.0f} a minute")
    if load["eta_seconds"]:
        parts.append(f"about {_span(load['eta_seconds'])} left")
    return "; ".join(parts) + "."


def _span(seconds: float | None) -> str:
    if seconds is None or seconds < 100:
        return f"{seconds or 0:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def state_line(row: dict[str, Any]) -> str:
    if row["state"] != "ingesting":
        return str(row["state"])
    progress = row["progress"]
    return f"{row['stage']} {progress['done']}/{progress['total']}" if progress else str(row["stage"])


def place_of(item: dict[str, Any]) -> str:
    parts = [printable(item["source"])]
    if item["page"] is not None:
        parts.append(f"page {item['page']}")
    elif item["heading"]:
        parts.append(printable(" › ".join(item["heading"])))
    return ", ".join(parts)


def scores_of(result: dict[str, Any]) -> str:
    """What the passage is ordered by comes first."""
    reranked = result["rerank_score"]
    return f"{result['score']:.3f}" if reranked is None else f"reranked {reranked:.3f}, found {result['score']:.3f}"


def streamed(body: dict[str, Any], as_it_comes: bool) -> dict[str, Any]:
    """Prints the answer, sentence by sentence where a person reads along, and returns it. A part of one is not printed elsewhere."""
    shown, gap, answer = False, "", dict[str, Any]()
    with Client.of(load()) as system:
        try:
            for name, data in system.events("/ask", body):
                if name == "step" and as_it_comes:
                    click.secho(f"Searching: {printable(data['query'])}", err=True, dim=True)
                elif name == "delta" and as_it_comes:
                    text = data["text"].rstrip()
                    click.echo(gap + text, nl=False)
                    shown, gap = True, data["text"][len(text) :]
                elif name == "done":
                    answer = data
        except AskfolderError:
            if shown:
                click.echo(" …")
            raise
    click.echo("" if shown else answer["answer"])
    return answer
