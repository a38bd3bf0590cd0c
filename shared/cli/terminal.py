"""The command line's output: JSON, or lines of text."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import click

from shared.client import Client
from shared.errors import AskfolderError
from shared.settings import load
from shared.text.printable import dollars, printable

LISTED = 2000  # documents that the text of `status` lists


def show(answer: Any, as_json: bool, lines: Callable[[Any], Iterable[str]], indent: int | None = 2) -> None:
    """Print an answer of the API as JSON or as lines of text; the warnings of the text go to standard error."""
    if as_json:
        click.echo(json.dumps(answer, ensure_ascii=False, indent=indent))
        return
    for line in lines(answer):
        click.echo(line)
    for warning in answer.get("warnings", ()) if isinstance(answer, dict) else ():
        click.secho(warning, err=True, fg="yellow")


def stream_answer(body: dict[str, Any]) -> dict[str, Any]:
    """Print the answer to a question and return it; on a screen sentence by sentence, elsewhere once it is complete."""
    on_screen, printed, gap, answer = sys.stdout.isatty(), False, "", dict[str, Any]()
    with Client.of(load()) as system:
        try:
            for name, data in system.events("/ask", body):
                if name == "step" and on_screen:
                    click.secho(f"Searching: {printable(data['query'])}", err=True, dim=True)
                elif name == "delta" and on_screen:
                    text = data["text"].rstrip()
                    click.echo(gap + text, nl=False)
                    printed, gap = True, data["text"][len(text) :]
                elif name == "done":
                    answer = data
        except AskfolderError:
            if printed:
                click.echo(" …")
            raise
    click.echo("" if printed else answer["answer"])
    return answer


def citation_lines(answer: dict[str, Any]) -> Iterator[str]:
    for citation in answer["citations"]:
        yield f"\n[{citation['number']}] {_place(citation)}\n    “{_one_line(citation['quote'])}”"
    if answer["answerer"] == "extractive" and answer["citations"]:
        yield click.style("\nQuoted word for word from your documents. No AI model was used.", dim=True)


def passage_lines(answer: dict[str, Any]) -> Iterator[str]:
    for number, passage in enumerate(answer["results"], 1):
        text, reranked = _one_line(passage["content"]), passage["rerank_score"]
        found = f"{passage['score']:.3f}"
        score = found if reranked is None else f"reranked {reranked:.3f}, found {found}"
        yield f"{number:>3}. {_place(passage)}  ({score})\n     {text[:300]}{'…' if len(text) > 300 else ''}"


def status_lines(listing: dict[str, Any]) -> Iterator[str]:
    counts = ", ".join(f"{n} {state}" for state, n in sorted(listing["counts"].items()))
    yield counts or "No documents yet: drop files into the folder."
    if building := listing["building"]:
        yield (
            f"An index with {building['embedder']} {building['model']} is being built "
            f"({building['missing']} documents to go); the previous one answers meanwhile."
        )
    if listing["load"]["waiting"]:
        yield _progress(listing["load"])
    for problem in listing["problems"]:
        yield click.style(problem, fg="yellow")
    for row in listing["documents"][:LISTED]:
        yield f"  {_state(row):<22} {printable(row['source'])}"
        if row["error"]:
            yield f"{'':<25}{row['error']}"


def scan_lines(sources: list[dict[str, Any]]) -> Iterator[str]:
    for row in sources:
        scan = row["scan"]
        if row["problem"]:
            yield click.style(row["problem"], fg="yellow")
        if not row["held"]:
            yield (
                f"{row['root']}: {scan['files']} files; {scan['changed']} new or changed, {scan['renamed']} renamed, "
                f"{scan['gone']} gone."
            )


def usage_lines(answer: dict[str, Any]) -> Iterator[str]:
    rows = answer["days"]
    if rows:
        width = max(len(printable(row["model"])) for row in rows)
        names = ("calls", "input", "output", "to cache", "from cache", "dollars")
        yield f"{'day (UTC)':<10}  {'purpose':<9}  {'model':<{width}}" + "".join(f"{name:>12}" for name in names)
        for row in rows:
            kinds = ("calls", "input_tokens", "output_tokens", "cache_write_tokens", "cache_read_tokens")
            counts = "".join(f"{row[kind]:>12,}" for kind in kinds)
            model = printable(row["model"])
            yield f"{row['day']:<10}  {row['purpose']:<9}  {model:<{width}}{counts}{dollars(row['dollars']):>12}"
        known = [row["dollars"] for row in rows if row["dollars"] is not None]
        unknown = "" if len(known) == len(rows) else ", plus calls without a known price (ASKFOLDER_PRICES)"
        yield f"Total {dollars(sum(known))}{unknown}."
    else:
        yield "Nothing was sent to an AI service."
    for name, budget in answer["today"].items():
        cap = "no cap" if budget["cap"] is None else f"the cap is ${budget['cap']:g}"
        reserved = f", {dollars(budget['reserved'])} reserved by running calls" if budget["reserved"] else ""
        yield f"Today, {name}: {dollars(budget['spent'])}{reserved}; {cap}."


def question_lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        time, rating = row["asked_at"][:16].replace("T", " "), {1: "+", -1: "-"}.get(row["rating"], " ")
        yield f"{time} {rating} {row['verdict']:<9}  {_one_line(row['question'])}"


def _progress(load: dict[str, Any]) -> str:
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


def _state(row: dict[str, Any]) -> str:
    if row["state"] != "ingesting":
        return str(row["state"])
    progress = row["progress"]
    return f"{row['stage']} {progress['done']}/{progress['total']}" if progress else str(row["stage"])


def _place(passage: dict[str, Any]) -> str:
    """The document, and the page or the heading."""
    place = printable(passage["source"])
    if passage["page"] is not None:
        return f"{place}, page {passage['page']}"
    return f"{place}, {printable(' › '.join(passage['heading']))}" if passage["heading"] else place


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))
