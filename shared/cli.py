"""The command line: `up` runs everything here; the other commands talk to a running system over HTTP."""

import json
import os
import sys
import webbrowser
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import httpx2

from shared import access
from shared.errors import AskfolderError
from shared.settings import Settings, load

NO_ANSWER_EXIT = 3
NOT_RUNNING_EXIT = 4


class _Group(click.Group):
    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except AskfolderError as error:
            click.echo(str(error), err=True)
            sys.exit(1)


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
    from shared.up import up as run  # starts servers: not needed by the other commands

    run(load(), click.echo)


@cli.command()
@click.argument("question", nargs=-1, required=True)
@click.option("--top-k", type=int, help="Passages that the answer is made from.")
@click.option("--json", "as_json", is_flag=True, help="Print the API's answer as it is.")
def ask(question: tuple[str, ...], top_k: int | None, as_json: bool) -> None:
    """Answer a question from the documents. Exit code 3: nothing in them answers it."""
    body = {"question": " ".join(question)} | ({"top_k": top_k} if top_k is not None else {})
    answer = _call("POST", "/ask", body)
    if as_json:
        click.echo(json.dumps(answer, ensure_ascii=False, indent=2))
    else:
        click.echo(answer["answer"])
        for citation in answer["citations"]:
            click.echo(f"\n[{citation['number']}] {_place(citation)}\n    “{' '.join(citation['quote'].split())}”")
        if answer["answerer"] == "extractive" and answer["citations"]:
            click.secho("\nQuoted from your documents; no model was used.", dim=True)
        for warning in answer["warnings"]:
            click.secho(warning, err=True, fg="yellow")
    sys.exit(NO_ANSWER_EXIT if answer["verdict"] == "no_answer" else 0)


@cli.command()
@click.argument("query", nargs=-1, required=True)
@click.option("--top-k", type=int, default=10, show_default=True)
@click.option("--mode", type=click.Choice(["hybrid", "dense", "lexical"]), default="hybrid", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the API's answer as it is.")
def search(query: tuple[str, ...], top_k: int, mode: str, as_json: bool) -> None:
    """List the passages that match best. Exit code 3: none."""
    found = _call("POST", "/search", {"query": " ".join(query), "top_k": top_k, "mode": mode})
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False, indent=2))
    else:
        for number, result in enumerate(found["results"], 1):
            text = " ".join(result["content"].split())
            click.echo(
                f"{number:>3}. {_place(result)}  ({result['score']:.3f})\n     {text[:300]}{'…' if len(text) > 300 else ''}"
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
    for problem in listing["problems"]:
        click.secho(problem, fg="yellow")
    for row in rows[:2000]:
        click.echo(
            f"  {_state(row):<22} {_printable(row['source'])}" + (f"\n{'':<25}{row['error']}" if row["error"] else "")
        )


@cli.command()
@click.argument("document", type=int, required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the API's answer as it is.")
def retry(document: int | None, as_json: bool) -> None:
    """Queue failed documents again: all, or one by its id."""
    answer = _call("POST", f"/documents/{document}/retry" if document is not None else "/documents/retry")
    click.echo(json.dumps(answer) if as_json else f"{answer['queued']} documents are queued again.")


@cli.command(name="open")
def open_page() -> None:
    """Open the ask page in the browser, and say its address."""
    settings = load()
    link = f"{_url(settings)}/?key={_key(settings)}"
    click.echo(link)
    webbrowser.open(link)


def _state(row: dict[str, Any]) -> str:
    if row["state"] != "ingesting":
        return str(row["state"])
    progress = row["progress"]
    return f"{row['stage']} {progress['done']}/{progress['total']}" if progress else str(row["stage"])


def _place(item: dict[str, Any]) -> str:
    parts = [_printable(item["source"])]
    if item["page"] is not None:
        parts.append(f"page {item['page']}")
    elif item["heading"]:
        parts.append(" › ".join(item["heading"]))
    return ", ".join(parts)


def _printable(name: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)


def _url(settings: Settings) -> str:
    if settings.url:
        return settings.url.rstrip("/")
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


def _key(settings: Settings) -> str:
    return settings.key.get_secret_value() if settings.key else access.key(settings)


def _call(method: str, path: str, body: object = None, query: dict[str, Any] | None = None) -> Any:
    """A call of the running system's API; ends the command with a sentence when it does not answer as it should."""
    settings = load()
    url = _url(settings)
    local = urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
    try:
        with httpx2.Client(base_url=url, trust_env=not local, timeout=settings.ask_seconds + 10) as client:
            response = client.request(
                method, path, json=body, params=query, headers={"Authorization": f"Bearer {_key(settings)}"}
            )
    except httpx2.HTTPError as error:
        click.echo(
            f"askfolder does not answer at {url} ({error}). Start it with `make up`, or set ASKFOLDER_URL.", err=True
        )
        sys.exit(NOT_RUNNING_EXIT)
    try:
        answer = response.json()
    except ValueError:
        answer = {"detail": response.text[:300]}
    if response.is_error:
        click.echo(f"{answer.get('detail') or answer} ({response.status_code} from {url})", err=True)
        sys.exit(1)
    return answer


if __name__ == "__main__":
    cli(prog_name="askfolder")
