"""The command line: `up` runs everything here; the other commands talk to a running system over HTTP."""

import itertools
import json
import os
import subprocess
import sys
import time
import webbrowser
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from shared import client
from shared.cli import terminal
from shared.cli.terminal import show
from shared.client import Client, NotRunningError
from shared.errors import AskfolderError
from shared.settings import ROOT, load

NO_ANSWER_EXIT = 3
NOT_RUNNING_EXIT = 4
HELD_EXIT = 5
FINDINGS_EXIT = 6
RECONCILE_SECONDS = 600.0
UNFINISHED = ("ingesting", "queued", "failed", "quarantined")  # states that `status` lists


class _Group(click.Group):
    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except AskfolderError as error:
            click.echo(str(error), err=True)
            sys.exit(NOT_RUNNING_EXIT if isinstance(error, NotRunningError) else 1)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def cli() -> None:
    """Put files in a folder, ask questions, and get answers in which every citation is checked."""


_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
_path = click.Path(path_type=Path)


@cli.command()
@click.option("--inbox", type=_path, help="The folder to index, with its subfolders; askfolder only reads it.")
def up(inbox: Path | None) -> None:
    """Run everything until Ctrl-C."""
    if inbox is not None:
        os.environ["ASKFOLDER_INBOX"] = os.path.abspath(inbox.expanduser())
    from shared.system.up import up as run  # the servers: the other commands start faster without them

    run(load(), click.echo)


def _filter_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that restrict a question to some documents."""
    only = "Only documents"
    for option in (
        click.option(
            "--metadata",
            multiple=True,
            metavar="NAME=VALUE",
            help=f"{only} with this metadata: author=Anna; repeatable.",
        ),
        click.option("--before", help=f"{only} dated before this day."),
        click.option("--after", help=f"{only} dated on this day or later: 2024-06-30."),
        click.option(
            "--type", "types", multiple=True, help=f"{only} of this type: pdf, docx, md, html, py …; repeatable."
        ),
        click.option(
            "--source", help=f"{only} whose path starts with this or matches this glob: 'notes/', '**/2024-*.md'."
        ),
    ):
        command = option(command)
    return command


def _filters(metadata: tuple[str, ...], types: tuple[str, ...], **options: str | None) -> dict[str, Any]:
    """Return the filters of /search and /ask. A metadata value is parsed as JSON (3, true, '"3"') or else is text."""
    values: dict[str, Any] = {}
    for pair in metadata:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise click.UsageError(f"{pair!r} is not NAME=VALUE, like author=Anna.")
        try:
            values[name] = json.loads(value)
        except ValueError:
            values[name] = value
    filters = {"type": list(types), **options, "metadata": values}
    filters = {name: value for name, value in filters.items() if value}
    return {"filters": filters} if filters else {}


@cli.command()
@click.argument("question", nargs=-1, required=True)
@click.option("--top-k", type=int, help="The number of passages to answer from.")
@click.option("--deep", is_flag=True, help="Let Claude search again, in up to six steps, before it answers.")
@_filter_options
@_json_option
def ask(question: tuple[str, ...], top_k: int | None, deep: bool, as_json: bool, **filters: Any) -> None:
    """Answer a question from the documents. Exit code 3: the documents do not answer it."""
    body = {"question": " ".join(question), "mode": "deep" if deep else "quick"}
    body |= ({"top_k": top_k} if top_k is not None else {}) | _filters(**filters)
    answer = _call("POST", "/ask", body) if as_json else terminal.stream_answer(body)
    show(answer, as_json, terminal.citation_lines)
    sys.exit(NO_ANSWER_EXIT if answer["verdict"] == "no_answer" else 0)


@cli.command()
@click.argument("query", nargs=-1, required=True)
@click.option("--top-k", type=int, default=10, show_default=True, help="The number of passages.")
@click.option(
    "--mode",
    type=click.Choice(["hybrid", "dense", "lexical"]),
    default="hybrid",
    show_default=True,
    help="Compare meanings (dense), words (lexical) or both.",
)
@click.option("--rerank/--no-rerank", default=None, help="Use the reranker; default: if one is configured.")
@_filter_options
@_json_option
def search(query: tuple[str, ...], top_k: int, mode: str, rerank: bool | None, as_json: bool, **filters: Any) -> None:
    """List the best matching passages. Exit code 3: no passage matches."""
    body = {"query": " ".join(query), "top_k": top_k, "mode": mode, "rerank": rerank} | _filters(**filters)
    answer = _call("POST", "/search", body)
    show(answer, as_json, terminal.passage_lines)
    sys.exit(0 if answer["results"] else NO_ANSWER_EXIT)


@cli.command()
@click.option("--all", "everything", is_flag=True, help="List ready documents too, as --json does.")
@_json_option
def status(everything: bool, as_json: bool) -> None:
    """Show which documents are queued, in progress, ready or failed, and why."""
    everything |= as_json
    listing: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    with Client.of(load()) as system:
        for query in [{}] if everything else [{"state": state} for state in UNFINISHED]:
            for listing in itertools.islice(system.listings(**query), None if everything else 1):
                rows += listing["documents"]
    show({**listing, "documents": rows, "next_cursor": None}, as_json, terminal.status_lines)


@cli.command()
@click.argument("document", type=int, required=False)
@_json_option
def retry(document: int | None, as_json: bool) -> None:
    """Queue failed documents again: all of them, or one by its id."""
    answer = _call("POST", f"/documents/{document}/retry" if document is not None else "/documents/retry")
    show(answer, as_json, lambda answer: [f"{answer['queued']} documents are queued again."], indent=None)


@cli.command()
@click.option("--confirm", is_flag=True, help="Also remove the documents that the delete guard held back.")
@click.option("--rehash", is_flag=True, help="Read every file again, even if its size and time are unchanged.")
@_json_option
def reconcile(confirm: bool, rehash: bool, as_json: bool) -> None:
    """Compare the folder with the index now. Exit code 5: the scan was not carried out; the output says why."""
    asked = _call("POST", "/reconcile", {"confirm": confirm, "rehash": rehash})
    deadline = time.monotonic() + RECONCILE_SECONDS
    while True:
        rows = [row for row in _call("GET", "/sources")["sources"] if row["id"] in asked["sources"]]
        if all(row["scanned_at"] and not row["scan_asked"] and row["scanned_at"] > asked["asked_at"] for row in rows):
            break
        if time.monotonic() > deadline:
            click.echo("The scan is still running; ./askfolder status shows its progress.", err=True)
            sys.exit(1)
        time.sleep(0.2)
    show(rows, as_json, terminal.scan_lines)
    sys.exit(HELD_EXIT if any(row["held"] for row in rows) else 0)


@cli.command()
@click.option("--repair", is_flag=True, help="Repair what can be repaired without losing data.")
@_json_option
def doctor(repair: bool, as_json: bool) -> None:
    """Check that the index is consistent. Exit code 6: it is inconsistent."""

    def lines(answer: dict[str, Any]) -> Iterator[str]:
        if answer["ok"]:
            yield "The index is consistent: texts, chunks, vectors and words agree, and no document is stuck."
            return
        yield from (finding["sentence"] for finding in answer["findings"])
        repaired = f"Repaired; {answer['queued']} documents will be read again."
        yield repaired if repair else "To repair it: askfolder doctor --repair"

    answer = _call("POST", "/doctor", {"repair": repair})
    show(answer, as_json, lines)
    sys.exit(0 if answer["ok"] or repair else FINDINGS_EXIT)


@cli.command()
@click.option(
    "--days", type=click.IntRange(1, 3660), default=30, show_default=True, help="The number of days, today included."
)
@_json_option
def usage(days: int, as_json: bool) -> None:
    """Show what was sent to AI services, what it cost, and how much of today's caps is left (docs/costs.md)."""
    show(_call("GET", "/usage", query={"days": days}), as_json, terminal.usage_lines)


@cli.command()
@click.option("--rated", type=click.Choice(["up", "down", "none"]), help="Only questions with this rating.")
@click.option(
    "--limit", type=click.IntRange(1), help="The number of questions, newest first; default: 20, or all with --export."
)
@click.option(
    "--export",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a question set for askfolder eval; needs --rated up or down.",
)
@click.option("--forget", is_flag=True, help="Delete the whole log, with its ratings.")
@_json_option
def questions(rated: str | None, limit: int | None, export: Path | None, forget: bool, as_json: bool) -> None:
    """Show the question log with its ratings, or export it as a question set (docs/evaluation.md)."""
    from shared.evaluation import export as question_log

    if forget:
        if rated or export or limit:
            raise click.UsageError("--forget deletes the whole log; use it without other options.")
        click.echo(f"{_call('DELETE', '/questions')['forgotten']} questions were deleted.")
        return
    if export is not None and rated not in ("up", "down"):
        raise click.UsageError("--export needs --rated up or --rated down.")
    with Client.of(load()) as system:
        rows = list(question_log.read(system, rated, limit or (None if export or as_json else 20)))
    if export is None or rated is None:
        show(rows, as_json, terminal.question_lines)
        return
    written, stale = question_log.export(rows, rated, export)
    click.echo(f"{written} questions were written to {export}.")
    if stale:
        click.echo(f"{stale} answers were left out, because the cited text has changed.", err=True)
    if rated == "down" and written:
        click.echo("Fill in the relevant documents on each line, or remove the line: see docs/evaluation.md.", err=True)


@cli.command(name="eval")
@click.argument("path", metavar="QUESTIONS", type=_path)
@click.option("--temporary", is_flag=True, help="Start a temporary system and remove it at the end.")
@click.option("--documents", type=_path, multiple=True, help="A folder or file for the temporary system; repeatable.")
@click.option("--keep", type=_path, help="Keep the temporary system's data in this folder for the next run.")
@click.option("--limit", type=click.IntRange(1), help="Use at most this number of questions, in file order.")
@click.option("--answers", is_flag=True, help="Measure answers (POST /ask) instead of retrieval.")
@click.option(
    "--judge",
    is_flag=False,
    flag_value="claude-haiku-5-5",
    metavar="[MODEL]",
    help="With --answers: let a Claude model compare answers with references; default: claude-haiku-5-5.",
)
@click.option("--mode", help="hybrid (the default), dense or lexical; not with --answers.")
@click.option("--top-k", type=int, help="The number of passages; default: 100, or that of POST /ask with --answers.")
@click.option("--collection", help="Search in this collection only.")
@click.option("--with", "more", default="", help="More parameters of /search or /ask, or settings: 'NAME=VALUE …'.")
@click.option("--compare", help="Run again with these changes and compare: 'mode=dense', 'ASKFOLDER_…=… top_k=50'.")
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Write an HTML report to this file.")
@_json_option
def evaluate(more: str, compare: str | None, report: Path | None, as_json: bool, **options: Any) -> None:
    """Measure retrieval or answers with questions whose relevant documents are known (docs/evaluation.md).

    QUESTIONS is a JSONL file of {"question": …, "relevant": [path, …]}, or a folder in the BEIR layout.
    """
    from shared.evaluation import run  # numpy and the servers: the other commands start faster without them

    if options["judge"] and not options["answers"]:
        raise click.UsageError("--judge compares answers: add --answers.")
    if options["answers"] and options["mode"]:
        raise click.UsageError("--answers has no search mode: remove --mode or --answers.")
    parameters = {} if options["answers"] else {"mode": "hybrid", "top_k": 100}
    typed = {name: options.pop(name) for name in ("mode", "top_k", "collection")}
    first = run.Choice(parameters | {name: value for name, value in typed.items() if value is not None}).changed(more)
    choices = [first] if compare is None else [first, first.changed(compare)]
    run.evaluate(run.Plan(choices=choices, **options), report, as_json)


@cli.command()
@click.argument("folder", metavar="[DIR]", type=_path, required=False)
@_json_option
def estimate(folder: Path | None, as_json: bool) -> None:
    """Show what indexing a folder would cost before anything is sent: files, chunks, tokens, dollars.

    DIR is the folder; default: the inbox. It is read and chunked on this machine, with the current settings.
    """
    path = os.path.abspath(folder.expanduser()) if folder else str(load().inbox)
    # A process of its own, because shared/ does not import worker/, which reads documents.
    command = [sys.executable, "-m", "worker.estimate", path, *(["--json"] if as_json else [])]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    try:
        sys.exit(subprocess.run(command, env=environment, check=False).returncode)
    except KeyboardInterrupt:
        sys.exit(130)


@cli.command(name="open")
def open_page() -> None:
    """Open the ask page in the browser and print its address."""
    settings = load()
    link = f"{client.address(settings)}/?key={client.key(settings)}"
    click.echo(link)
    webbrowser.open(link)


def _call(method: str, path: str, body: object = None, query: dict[str, Any] | None = None) -> Any:
    with Client.of(load()) as system:
        return system.call(method, path, body, query)
