"""The command line: `up` runs everything here; the other commands talk to a running system over HTTP."""

import json
import os
import subprocess
import sys
import time
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from shared import client
from shared.cli.terminal import place_of, progress_of, scores_of, state_line, streamed
from shared.client import Client, NotRunningError
from shared.errors import AskfolderError
from shared.settings import ROOT, load
from shared.text.printable import dollars, printable

NO_ANSWER_EXIT = 3
NOT_RUNNING_EXIT = 4
HELD_EXIT = 5
FINDINGS_EXIT = 6
RECONCILE_SECONDS = 600.0


class _Group(click.Group):
    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except AskfolderError as error:
            click.echo(str(error), err=True)
            sys.exit(NOT_RUNNING_EXIT if isinstance(error, NotRunningError) else 1)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def cli() -> None:
    """Drop files in a folder, ask questions, get answers in which every citation has been checked."""


@cli.command()
@click.option(
    "--inbox", type=click.Path(path_type=Path), help="The folder to mirror, subfolders included; never written to."
)
def up(inbox: Path | None) -> None:
    """Run everything until Ctrl-C."""
    if inbox is not None:
        os.environ["ASKFOLDER_INBOX"] = os.path.abspath(inbox.expanduser())
    from shared.system.up import up as run  # starts servers: not needed by the other commands

    run(load(), click.echo)


_FILTERS = (
    click.option(
        "--source", help="Only documents whose path begins with this, or matches it: 'notes/', '**/2024-*.md'."
    ),
    click.option(
        "--type", "types", multiple=True, help="Only this type of file: pdf, docx, md, html, py …; may be given again."
    ),
    click.option("--after", help="Only documents dated on this day or later: 2024-06-30."),
    click.option("--before", help="Only documents dated before this day."),
    click.option(
        "--metadata",
        multiple=True,
        metavar="NAME=VALUE",
        help="Only documents that say so of themselves: author=Anna, tags=x.",
    ),
)


def _filtered(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options that narrow a question."""
    for option in reversed(_FILTERS):
        command = option(command)
    return command


def _filters(options: dict[str, Any]) -> dict[str, Any]:
    """The options as /search and /ask take them. A value that is JSON, like 3 or true or '"3"', is what it says, else it is text."""
    metadata: dict[str, Any] = {}
    for pair in options.pop("metadata"):
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise click.UsageError(f"{pair!r} is not NAME=VALUE, like author=Anna.")
        try:
            metadata[name] = json.loads(value)
        except ValueError:
            metadata[name] = value
    given = {"type": list(options.pop("types")), **options, "metadata": metadata}
    filters = {name: value for name, value in given.items() if value}
    return {"filters": filters} if filters else {}


@cli.command()
@click.argument("question", nargs=-1, required=True)
@click.option("--top-k", type=int, help="Passages that the answer is made from.")
@click.option("--deep", is_flag=True, help="Claude searches on by itself, in up to six steps, before it answers.")
@_filtered
@click.option("--json", "as_json", is_flag=True, help="Print the API's answer as it is.")
def ask(question: tuple[str, ...], top_k: int | None, deep: bool, as_json: bool, **options: Any) -> None:
    """Answer a question from the documents. Exit code 3: nothing in them answers it."""
    body = {"question": " ".join(question), "mode": "deep" if deep else "quick"}
    body |= ({"top_k": top_k} if top_k is not None else {}) | _filters(options)
    if as_json:
        answer = _call("POST", "/ask", body)
        click.echo(json.dumps(answer, ensure_ascii=False, indent=2))
    else:
        answer = streamed(body, sys.stdout.isatty())
        for citation in answer["citations"]:
            click.echo(
                f"\n[{citation['number']}] {place_of(citation)}\n    “{printable(' '.join(citation['quote'].split()))}”"
            )
        if answer["answerer"] == "extractive" and answer["citations"]:
            click.secho("\nQuoted from your documents; no model was used.", dim=True)
        for warning in answer["warnings"]:
            click.secho(warning, err=True, fg="yellow")
    sys.exit(NO_ANSWER_EXIT if answer["verdict"] == "no_answer" else 0)


@cli.command()
@click.argument("query", nargs=-1, required=True)
@click.option("--top-k", type=int, default=10, show_default=True)
@click.option("--mode", type=click.Choice(["hybrid", "dense", "lexical"]), default="hybrid", show_default=True)
@click.option("--rerank/--no-rerank", default=None, help="With the reranker, or without; unsaid: if one is set up.")
@_filtered
@click.option("--json", "as_json", is_flag=True, help="Print the API's answer as it is.")
def search(query: tuple[str, ...], top_k: int, mode: str, rerank: bool | None, as_json: bool, **options: Any) -> None:
    """List the passages that match best. Exit code 3: none."""
    body = {"query": " ".join(query), "top_k": top_k, "mode": mode, "rerank": rerank} | _filters(options)
    found = _call("POST", "/search", body)
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False, indent=2))
    else:
        for number, result in enumerate(found["results"], 1):
            text = printable(" ".join(result["content"].split()))
            click.echo(
                f"{number:>3}. {place_of(result)}  ({scores_of(result)})\n     {text[:300]}{'…' if len(text) > 300 else ''}"
            )
        for warning in found["warnings"]:
            click.secho(warning, err=True, fg="yellow")
    sys.exit(0 if found["results"] else NO_ANSWER_EXIT)


@cli.command()
@click.option("--all", "everything", is_flag=True, help="List the ready documents too.")
@click.option("--json", "as_json", is_flag=True, help="Print the API's answers as they are, all documents.")
def status(everything: bool, as_json: bool) -> None:
    """Show what is queued, in work, ready or failed, and why."""
    listing: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    states = [None] if everything or as_json else ["ingesting", "queued", "failed", "quarantined"]
    for state in states:
        cursor: int | None = 0
        while cursor is not None:
            query = {"limit": 1000, "cursor": cursor} | ({"state": state} if state else {})
            listing = _call("GET", "/documents", query=query)
            rows += listing["documents"]
            cursor = listing["next_cursor"] if everything or as_json else None
    if as_json:
        click.echo(json.dumps({**listing, "documents": rows, "next_cursor": None}, ensure_ascii=False, indent=2))
        return
    counts = listing["counts"]
    click.echo(
        ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))
        or "No documents yet: drop files into the folder."
    )
    if building := listing["building"]:
        click.echo(
            f"An index with {building['embedder']} {building['model']} is being built ({building['missing']} documents to go); "
            "the one before answers meanwhile."
        )
    if (load := listing["load"])["waiting"]:
        click.echo(progress_of(load))
    for problem in listing["problems"]:
        click.secho(problem, fg="yellow")
    for row in rows[:2000]:
        click.echo(
            f"  {state_line(row):<22} {printable(row['source'])}"
            + (f"\n{'':<25}{row['error']}" if row["error"] else "")
        )


@cli.command()
@click.argument("document", type=int, required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the API's answer as it is.")
def retry(document: int | None, as_json: bool) -> None:
    """Queue failed documents again: all, or one by its id."""
    answer = _call("POST", f"/documents/{document}/retry" if document is not None else "/documents/retry")
    click.echo(json.dumps(answer) if as_json else f"{answer['queued']} documents are queued again.")


@cli.command()
@click.option("--confirm", is_flag=True, help="Remove, too, what the delete guard held back.")
@click.option("--rehash", is_flag=True, help="Read every file again, those too whose size and time are as they were.")
@click.option("--json", "as_json", is_flag=True, help="Print the sources as the API gives them.")
def reconcile(confirm: bool, rehash: bool, as_json: bool) -> None:
    """Compare the folder with the index now. Exit code 5: the scan was not carried out, and why."""
    asked = _call("POST", "/reconcile", {"confirm": confirm, "rehash": rehash})
    deadline = time.monotonic() + RECONCILE_SECONDS
    while True:
        rows = [row for row in _call("GET", "/sources")["sources"] if row["id"] in asked["sources"]]
        if all(row["scanned_at"] and not row["scan_asked"] and row["scanned_at"] > asked["asked_at"] for row in rows):
            break
        if time.monotonic() > deadline:
            click.echo("The scan goes on; ./askfolder status says more.", err=True)
            sys.exit(1)
        time.sleep(0.2)
    if as_json:
        click.echo(json.dumps(rows, ensure_ascii=False, indent=2))
    for row in () if as_json else rows:
        if row["problem"]:
            click.secho(row["problem"], fg="yellow")
        if row["held"]:
            continue
        scan = row["scan"]
        click.echo(
            f"{row['root']}: {scan['files']} files; {scan['changed']} new or changed, {scan['renamed']} renamed, {scan['gone']} gone."
        )
    sys.exit(HELD_EXIT if any(row["held"] for row in rows) else 0)


@cli.command()
@click.option("--repair", is_flag=True, help="Mend what can be mended without a loss.")
@click.option("--json", "as_json", is_flag=True, help="Print the API's answer as it is.")
def doctor(repair: bool, as_json: bool) -> None:
    """Check that the whole index is consistent. Exit code 6: it is not."""
    answer = _call("POST", "/doctor", {"repair": repair})
    if as_json:
        click.echo(json.dumps(answer, ensure_ascii=False, indent=2))
    elif answer["ok"]:
        click.echo("All is well: texts, chunks, vectors and words agree, and nothing is stuck.")
    else:
        for finding in answer["findings"]:
            click.echo(finding["sentence"])
        click.echo(
            f"Mended; {answer['queued']} documents are read again."
            if repair
            else "To mend it: askfolder doctor --repair"
        )
    sys.exit(0 if answer["ok"] or repair else FINDINGS_EXIT)


@cli.command()
@click.option("--days", type=click.IntRange(1, 3660), default=30, show_default=True, help="Today and the days before.")
@click.option("--json", "as_json", is_flag=True, help="Print the API's answer as it is.")
def usage(days: int, as_json: bool) -> None:
    """Show what was sent to models elsewhere, what it cost, and what is left of today's caps (docs/costs.md)."""
    answer = _call("GET", "/usage", query={"days": days})
    if as_json:
        click.echo(json.dumps(answer, ensure_ascii=False, indent=2))
        return
    rows = answer["days"]
    if not rows:
        click.echo("Nothing was sent to a model elsewhere.")
    else:
        width = max(len(printable(row["model"])) for row in rows)
        names = ("calls", "input", "output", "to cache", "from cache")
        click.echo(
            f"{'day (UTC)':<10}  {'purpose':<9}  {'model':<{width}}"
            + "".join(f"{n:>12}" for n in names)
            + "     dollars"
        )
    for row in rows:
        counts = (row["calls"], *(row[f"{kind}_tokens"] for kind in ("input", "output", "cache_write", "cache_read")))
        click.echo(
            f"{row['day']:<10}  {row['purpose']:<9}  {printable(row['model']):<{width}}"
            + "".join(f"{count:>12,}" for count in counts)
            + f"{dollars(row['dollars']):>12}"
        )
    if rows:
        known = [row["dollars"] for row in rows if row["dollars"] is not None]
        unknown = "" if len(known) == len(rows) else ", and what has no known price (ASKFOLDER_PRICES)"
        click.echo(f"Together {dollars(sum(known))}{unknown}.")
    for name, budget in answer["today"].items():
        cap = "no cap" if budget["cap"] is None else f"the cap is ${budget['cap']:g}"
        under_way = f", {dollars(budget['reserved'])} reserved by calls under way" if budget["reserved"] else ""
        click.echo(f"Today, {name}: {dollars(budget['spent'])}{under_way}; {cap}.")


@cli.command()
@click.option("--rated", type=click.Choice(["up", "down", "none"]), help="Only those rated so on the page.")
@click.option("--limit", type=click.IntRange(1), help="The newest so many; 20, or all with --export.")
@click.option(
    "--export",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a question set for askfolder eval, of --rated up or down.",
)
@click.option("--forget", is_flag=True, help="Delete the whole log, ratings too.")
@click.option("--json", "as_json", is_flag=True, help="Print the questions as the API gives them.")
def questions(rated: str | None, limit: int | None, export: Path | None, forget: bool, as_json: bool) -> None:
    """Show what was asked and how it was rated; make a question set of it (docs/evaluation.md)."""
    from shared.evaluation import export as feedback

    if forget:
        if rated or export or limit:
            raise click.UsageError("--forget deletes the whole log; it goes with no other option.")
        click.echo(f"{_call('DELETE', '/questions')['forgotten']} questions are forgotten.")
        return
    if export is not None and rated not in ("up", "down"):
        raise click.UsageError("--export needs --rated up or --rated down.")
    with Client.of(load()) as system:
        rows = list(feedback.read(system, rated, limit or (None if export or as_json else 20)))
    if export is not None and rated is not None:
        written, stale = feedback.export(rows, rated, export)
        click.echo(f"{written} questions are in {export}.")
        if stale:
            click.echo(f"{stale} are left out: the words that they cite have changed.", err=True)
        if rated == "down" and written:
            click.echo("Fill in what is right on each line, or remove it: docs/evaluation.md says how.", err=True)
    elif as_json:
        click.echo(json.dumps(rows, ensure_ascii=False, indent=2))
    else:
        for row in rows:
            sign = {1: "+", -1: "-"}.get(row["rating"], " ")
            click.echo(
                f"{row['asked_at'][:16].replace('T', ' ')} {sign} {row['verdict']:<9}  {printable(' '.join(row['question'].split()))}"
            )


@cli.command(name="eval")
@click.argument("questions", type=click.Path(path_type=Path))
@click.option("--temporary", is_flag=True, help="On a system of its own, removed in the end.")
@click.option(
    "--documents", type=click.Path(path_type=Path), multiple=True, help="What it indexes: a folder, or several paths."
)
@click.option("--keep", type=click.Path(path_type=Path), help="Keep that system's data here, and use it again.")
@click.option("--limit", type=click.IntRange(1), help="The first so many questions only.")
@click.option("--answers", is_flag=True, help="Measure answers (POST /ask), not what is found.")
@click.option(
    "--judge",
    is_flag=False,
    flag_value="claude-haiku-5-5",
    metavar="[MODEL]",
    help="With --answers: a model of Anthropic's compares them with the references; claude-haiku-5-5 if none is named.",
)
@click.option("--mode", help="hybrid (the default), dense or lexical; not with --answers.")
@click.option(
    "--top-k", type=int, help="Passages asked for: 100, folded to documents; with --answers as many as POST /ask takes."
)
@click.option("--collection", help="Search in this collection only.")
@click.option("--with", "more", default="", help="Further parameters of /search or /ask, or settings: 'NAME=VALUE …'.")
@click.option(
    "--compare", help="A second run with these changes, side by side: 'mode=dense', 'ASKFOLDER_…=… top_k=50'."
)
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Write an HTML report to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def evaluate(
    questions: Path,
    temporary: bool,
    documents: tuple[Path, ...],
    keep: Path | None,
    limit: int | None,
    answers: bool,
    judge: str | None,
    mode: str | None,
    top_k: int | None,
    collection: str | None,
    more: str,
    compare: str | None,
    report: Path | None,
    as_json: bool,
) -> None:
    """Measure retrieval, or answers, with questions whose right documents are known (docs/evaluation.md).

    QUESTIONS is a JSONL file of {"question": …, "relevant": [path, …]}, or a folder in the BEIR layout.
    """
    from shared.evaluation import run as experiment  # numpy and the servers: not needed by the other commands

    if judge and not answers:
        raise click.UsageError("--judge is about answers: add --answers.")
    if answers and mode:
        raise click.UsageError("POST /ask has no mode: leave --mode out, or --answers.")
    named = {"mode": mode, "top_k": top_k, "collection": collection}
    given = {name: value for name, value in named.items() if value is not None}
    first = experiment.Choice(given if answers else {"mode": "hybrid", "top_k": 100, **given}).changed(more)
    choices = [first] if compare is None else [first, first.changed(compare)]
    experiment.evaluate(
        experiment.Plan(questions, choices, temporary, documents, keep, limit, answers, judge), report, as_json
    )


@cli.command()
@click.argument("folder", metavar="[DIR]", type=click.Path(path_type=Path), required=False)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, all files that cannot be read too.")
def estimate(folder: Path | None, as_json: bool) -> None:
    """Say what a folder would cost before anything is sent: files, chunks, tokens, dollars.

    DIR: the folder to look at; the inbox if left out. It is read and chunked here with what is set up, as a running system would.
    """
    path = os.path.abspath(folder.expanduser()) if folder else str(load().inbox)
    # A process of its own, as `up` starts them: what reads documents is the worker's.
    command = [sys.executable, "-m", "worker.estimate", path, *(["--json"] if as_json else [])]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    try:
        sys.exit(subprocess.run(command, env=environment, check=False).returncode)
    except KeyboardInterrupt:
        sys.exit(130)


@cli.command(name="open")
def open_page() -> None:
    """Open the ask page in the browser, and say its address."""
    settings = load()
    link = f"{client.address(settings)}/?key={client.key(settings)}"
    click.echo(link)
    webbrowser.open(link)


def _call(method: str, path: str, body: object = None, query: dict[str, Any] | None = None) -> Any:
    with Client.of(load()) as system:
        return system.call(method, path, body, query)
