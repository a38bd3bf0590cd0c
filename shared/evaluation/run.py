"""`askfolder eval`: ask the same questions with one or two choices of settings; print a table and write a report."""

import contextlib
import difflib
import json
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import psycopg

from shared import db, prices
from shared.client import Client
from shared.errors import AskfolderError, PermanentError, SettingsError
from shared.evaluation import judge as judging
from shared.evaluation import report
from shared.evaluation.answers import Answered, Answers, answered
from shared.evaluation.question_sets import Question, Result, Run, read_beir, read_questions
from shared.evaluation.significance import Difference, compare
from shared.evaluation.temporary import data_folder, gather, temporary, workplace, write_corpus
from shared.providers.claude import Claude
from shared.providers.meter import Meter
from shared.settings import Settings, load
from shared.system.servers import Servers
from shared.text.printable import printable

WORST = 10  # questions that the terminal shows


@dataclass(frozen=True, slots=True)
class Choice:
    """Parameters of POST /search or /ask, nested ones with dots, and settings by their environment names."""

    parameters: Mapping[str, Any]
    settings: Mapping[str, str] = field(default_factory=dict)

    def label(self) -> str:
        shown = {name: "…" if name.endswith("_KEY") else value for name, value in self.settings.items()}
        return " ".join(f"{name}={value}" for name, value in {**shown, **self.parameters}.items()) or "as it is set up"

    def changed(self, words: str) -> "Choice":
        """Return this choice with NAME=VALUE words added. Raises click.UsageError."""
        parameters, settings = dict(self.parameters), dict(self.settings)
        try:
            parts = shlex.split(words)
        except ValueError as error:
            raise click.UsageError(f"{words!r} cannot be parsed ({error}).") from None
        for part in parts:
            name, equals, value = part.partition("=")
            if not name or not equals:
                raise click.UsageError(f"{part!r} is not NAME=VALUE, like mode=dense or ASKFOLDER_EMBEDDER=openai.")
            if name.isupper():
                settings[name] = value
                continue
            try:
                parameters[name] = json.loads(value)
            except ValueError:
                parameters[name] = value
        return Choice(parameters, settings)

    def body(self, **more: Any) -> dict[str, Any]:
        body: dict[str, Any] = {}
        for name, value in {**self.parameters, **more}.items():
            *outer, last = name.split(".")
            inner = body
            for key in outer:
                inner = inner.setdefault(key, {})
            inner[last] = value
        return body


@dataclass(frozen=True, slots=True)
class Plan:
    """The options of `askfolder eval`. `choices`: one, or two to compare; `judge`: the model that grades answers."""

    path: Path
    choices: list[Choice]
    temporary: bool = False
    documents: tuple[Path, ...] = ()
    keep: Path | None = None
    limit: int | None = None
    answers: bool = False
    judge: str | None = None

    @property
    def beir(self) -> bool:
        """A folder in the BEIR layout brings its own documents."""
        return self.path.is_dir()

    @property
    def own_system(self) -> bool:
        return self.beir or self.temporary or bool(self.documents) or self.keep is not None


@dataclass(frozen=True, slots=True)
class Outcome:
    """`notes`: sentences about anything that affects the figures."""

    runs: list[Run] | list[Answers]
    difference: Difference | None
    notes: list[str]


def evaluate(plan: Plan, html: Path | None, as_json: bool) -> None:
    """Carry out the plan and print the result. Everything else goes to stderr."""
    for number in (signal.SIGTERM, signal.SIGHUP):  # so that a temporary system is stopped too
        signal.signal(number, lambda *_: sys.exit(1))
    if html is not None and not html.absolute().parent.is_dir():
        raise PermanentError(f"{html} cannot be written: {html.absolute().parent} is not a folder.")
    outcome = carry_out(plan)
    if html is not None:
        try:
            html.write_text(report.page(str(plan.path), outcome.runs, outcome.difference, outcome.notes), "utf-8")
        except OSError as error:
            raise PermanentError(f"{html} cannot be written ({error.strerror}).") from None
    click.echo(json.dumps(as_data(outcome), ensure_ascii=False, indent=1) if as_json else as_text(outcome))
    for note in outcome.notes:
        click.secho(note, err=True, fg="yellow")
    if html is not None:
        click.echo(f"Report: {html}", err=as_json)


def carry_out(plan: Plan) -> Outcome:
    """Ask all questions and compute the measures. Wrong questions and options are refused before anything starts."""
    questions, left_out = _read_questions(plan)
    _check_options(plan)
    with contextlib.ExitStack() as stack:
        if plan.own_system:
            clients, ids = _temporary_systems(plan, stack)
        else:
            clients, ids = [stack.enter_context(Client.of(load()))] * len(plan.choices), {}
        notes = _check_index(clients[0], questions, ids) + left_out
        results: list[list[Any]] = [[] for _ in clients]
        ask = _answer if plan.answers else _search
        for number, question in enumerate(questions):
            order = list(range(len(clients)))
            for side in order if number % 2 else order[::-1]:  # in turns: neither always profits from a warm cache
                results[side].append(ask(clients[side], plan.choices[side], question, ids))
        systems = [_describe_index(client) for client in clients]
    kind: type[Answers] | type[Run] = Answers if plan.answers else Run
    labels = [choice.label() for choice in plan.choices]
    runs: Any = [kind(*values) for values in zip(labels, systems, results, strict=True)]
    if plan.judge:
        runs = _judged(runs, plan)
        for run in runs:
            if missing := run.not_judged():
                notes.append(f"{len(missing)} answers ({run.label}) were not judged: {run.judged.reason}")
    difference = compare(runs[0], runs[1]) if len(runs) > 1 else None
    warnings = {warning for run in runs for result in run.results for warning in result.warnings}
    return Outcome(runs, difference, notes + sorted(warnings))


def _read_questions(plan: Plan) -> tuple[list[Question], list[str]]:
    """Return the questions to ask, and a note if some are left out."""
    if not plan.path.exists():
        raise PermanentError(f"{plan.path} does not exist: name a file of questions or a folder in the BEIR layout.")
    questions = (read_beir if plan.beir else read_questions)(plan.path)[: plan.limit]
    answerable = [question for question in questions if question.answerable or plan.answers]
    if not answerable:
        raise PermanentError(
            f"{plan.path}: no document answers these questions, so retrieval cannot be measured: use --answers."
        )
    if plan.judge and load().anthropic_api_key is None:
        raise SettingsError("--judge needs ANTHROPIC_API_KEY; set it in .env or the environment.")
    if plan.judge and not any(question.answers for question in answerable):
        raise PermanentError(f'{plan.path}: no question has an "answer" to compare with, so there is nothing to judge.')
    left_out = len(questions) - len(answerable)
    note = f"{left_out} unanswerable questions were left out; --answers measures them."
    return answerable, [note] if left_out else []


def _check_options(plan: Plan) -> None:
    if plan.beir and plan.documents:
        raise click.UsageError(f"{plan.path} brings its own documents: leave --documents out.")
    if plan.own_system and not plan.beir and not plan.documents:
        raise click.UsageError("A temporary system needs documents: name them with --documents.")
    if not plan.own_system and any(choice.settings for choice in plan.choices):
        raise click.UsageError("Settings need a temporary system: add --temporary --documents PATH.")


def _temporary_systems(plan: Plan, stack: contextlib.ExitStack) -> tuple[list[Client], dict[str, str]]:
    """Start a system for each choice, and return clients and file → id of a BEIR corpus.

    Choices with the same settings share a system.
    """
    named = [plan.path] if plan.beir else list(plan.documents)
    work = stack.enter_context(workplace(plan.keep, ", ".join(str(path.resolve()) for path in named)))
    folder, ids = work / "documents", dict[str, str]()
    if plan.beir:
        ids = write_corpus(plan.path, folder)
    else:
        folder = gather(named, folder)
    running: dict[Path, Client] = {}
    for choice in plan.choices:
        data = data_folder(work, choice.settings)
        if data not in running:
            _say(f"Starting a system over {folder} …")
            running[data] = stack.enter_context(temporary(folder.absolute(), data.absolute(), choice.settings, _say))
    return [running[data_folder(work, choice.settings)] for choice in plan.choices], ids


def _check_index(client: Client, questions: Sequence[Question], ids: Mapping[str, str]) -> list[str]:
    """Return notes about an incomplete index. Raises PermanentError when a relevant path is not in it."""
    documents = [row for listing in client.listings() for row in listing["documents"]]
    known = {ids.get(row["source"], row["source"]) for row in documents}
    notes = []
    missing = [(question, name) for question in questions for name in question.relevant if name not in known]
    if missing and ids:
        notes.append(f"{len(missing)} judged documents are not in the corpus: they count as not found.")
    elif missing:
        question, name = missing[0]
        similar = difflib.get_close_matches(name, known, 1, 0.5)
        raise PermanentError(
            f"The question {question.id} names {name!r}, which is not in the index"
            + (f"; there is {similar[0]!r}" if similar else "")
            + (f" ({len(missing) - 1} more such paths)" if len(missing) > 1 else "")
            + ". askfolder status --all lists the paths."
        )
    failed = [row for row in documents if row["state"] in ("failed", "quarantined")]
    if failed:
        first = f"{failed[0]['source']}: {failed[0]['error']}"
        notes.append(f"{len(failed)} documents could not be read; the first: {first}")
    if waiting := sum(row["state"] in ("queued", "ingesting") for row in documents):
        notes.append(f"{waiting} documents are not indexed yet: run it again when askfolder status shows none waiting.")
    return notes


def _search(client: Client, choice: Choice, question: Question, ids: Mapping[str, str]) -> Result:
    """Search twice: the first time computes the embedding and its time, the second finds it in the cache.

    The first search is not reranked, because a reranker may cost something.
    """
    first, _ = _post(client, "/search", choice.body(query=question.text, top_k=1, rerank=False), question)
    found, took = _post(client, "/search", choice.body(query=question.text), question)
    best: dict[str, dict[str, Any]] = {}
    places = []
    for passage in found["results"]:
        name = ids.get(passage["source"], passage["source"])
        best.setdefault(name, passage)
        places.append((name, passage["char_start"], passage["char_end"]))
    embedding = float(first["timings"].get("embed_ms", 0.0))
    return Result(question, list(best), list(best.values()), took, embedding, places, found["warnings"])


def _answer(client: Client, choice: Choice, question: Question, ids: Mapping[str, str]) -> Answered:
    """Ask once, because an answer may cost something, and keep it out of the question log."""
    answer, took = _post(client, "/ask", choice.body(question=question.text, log=False), question)
    return answered(question, answer, took, ids, prices.PRICES | prices.read(load().prices))


def _post(client: Client, path: str, body: dict[str, Any], question: Question) -> tuple[Any, float]:
    """Return the answer and its milliseconds."""
    started = time.perf_counter()
    try:
        return client.call("POST", path, body), (time.perf_counter() - started) * 1000
    except AskfolderError as error:
        raise type(error)(f"The question {question.id} could not be asked: {error}") from None


def _judged(runs: Sequence[Answers], plan: Plan) -> list[Answers]:
    """Return the runs with grades."""
    settings = load()
    known = prices.PRICES | prices.read(settings.prices)
    assert plan.judge
    with contextlib.ExitStack() as stack:
        meter = open_meter(plan, settings, stack, judging.AT_ONCE)
        claude = Claude.of(settings, meter)
        assert claude
        judge = judging.Judge(claude, plan.judge, known)
        _say(f"{plan.judge} judges the answers …")
        found = []
        for run in runs:
            results, judged = judge.judge(run.results)
            found.append(replace(run, results=results, judged=judged))
    return found


def open_meter(plan: Plan, settings: Settings, stack: contextlib.ExitStack, calls: int) -> Meter:
    """Return the meter of this checkout's system, or one that only counts if the database cannot be reached.

    `calls`: how many are made at once.
    """
    local = Servers.running(settings.data) if not settings.url or plan.temporary else None
    if local and not settings.database_url:
        settings = settings.model_copy(update={"database_url": local.database_url})
    if local and not settings.redis_url:
        settings = settings.model_copy(update={"redis_url": local.redis_url})
    try:
        if settings.database_url:
            with db.connect(settings.database_url, 3) as connection:
                db.prepare_pooled(connection)
            return Meter.of(settings, stack.enter_context(db.pool(settings.database_url, calls)))
    except (AskfolderError, psycopg.Error):
        pass
    cap = "" if settings.budget_answers is None else ", and ASKFOLDER_BUDGET_ANSWERS does not hold for it"
    _say(f"The database is out of reach from here: the cost of judging is printed, but not in askfolder usage{cap}.")
    return Meter(redis_url=settings.redis_url)


def _describe_index(client: Client) -> str:
    listing = client.call("GET", "/documents", query={"limit": 1})
    ready, index = listing["counts"].get("ready", 0), listing.get("index")
    index = index or {"embedder": "no index", "model": "", "dimensions": 0}
    return f"{ready:,} documents, {index['embedder']} {index['model']} ({index['dimensions']})"


def _say(text: str) -> None:
    click.echo(text, err=True)


# --- printing --------------------------------------------------------------------------------------------------------


def as_data(outcome: Outcome) -> dict[str, Any]:
    runs = [
        {
            "label": run.label,
            "system": run.system,
            "summary": run.summary(),
            **({"judge": asdict(run.judged)} if isinstance(run, Answers) and run.judged else {}),
            "questions": [_row(result) for result in run.results],
        }
        for run in outcome.runs
    ]
    return {
        "runs": runs,
        "difference": asdict(outcome.difference) if outcome.difference else None,
        "notes": outcome.notes,
    }


def _row(result: Result | Answered) -> dict[str, Any]:
    question = result.question
    row = {"id": question.id, "question": question.text, "relevant": question.relevant, "latency_ms": result.took}
    if isinstance(result, Result):
        return row | {"ranking": result.ranking, "measures": result.values}
    answer = {name: result.answer[name] for name in ("answer", "verdict", "answerer", "citations", "usage")}
    return row | {
        "answerable": question.answerable,
        **answer,
        "right": result.right,
        "F1": result.f1,
        "judged": result.judged,
        "dollars": result.dollars,
    }


def as_text(outcome: Outcome) -> str:
    return "\n".join(_lines(outcome))


def _lines(outcome: Outcome) -> Iterator[str]:
    runs, difference = outcome.runs, outcome.difference
    judged = report.judged_by(runs)
    heads = [f"{len(run.results):,} questions, {run.label}: {run.system}{judged}" for run in runs]
    yield from (f"{side}{head}" for side, head in zip(("A: ", "B: ") if difference else ("",), heads, strict=True))
    yield ""
    summaries = [run.summary() for run in runs]
    if difference:
        yield f"{'':<18}{'A':>9}{'B':>9}{'B − A':>9}"
    for name in summaries[0]:
        values = [summary[name] for summary in summaries]
        cells = [report.figure(name, value) for value in values]
        if difference:
            cells.append(report.change(name, values))
        yield f"{name:<18}" + "".join(f"{cell:>9}" for cell in cells)
    if difference:
        yield ""
        yield report.verdict(difference)
    yield ""
    last, of = runs[-1], " of B" if difference else ""
    yield from _worst_answers(last, of) if isinstance(last, Answers) else _worst_rankings(last, of)
    yield ""


def _worst_rankings(run: Run, of: str) -> Iterator[str]:
    yield f"Worst questions{of} ({run.measure}; rank of the first relevant document; what came first)"
    for result in sorted(run.results, key=lambda r: (r.score, r.question.id))[:WORST]:
        top = printable(result.ranking[0]) if result.ranking else "nothing"
        score = report.figure(result.measure, result.score)
        yield f"{score:>6} {result.first or '–':>4}  {_named(result.question)}  ({top})"


def _worst_answers(run: Answers, of: str) -> Iterator[str]:
    judge = "the judge's word; " if run.judged else ""
    yield f"Worst questions{of} (a right citation, or a right refusal; F1; {judge}verdict; what was cited first)"
    for answer in sorted(run.results, key=_badness)[:WORST]:
        top = printable(answer.cited[0][0]) if answer.cited else "nothing"
        right = "right" if answer.score else "wrong"
        f1 = "" if answer.f1 is None else report.figure("", answer.f1)
        grade = f"{'–' if answer.judged == '' else answer.judged or '':<8} " if run.judged else ""
        verdict = answer.answer["verdict"]
        yield f"{right:>6} {f1:>5} {grade}{verdict:<9}  {_named(answer.question)}  ({top})"


def _badness(answer: Answered) -> tuple[float, float, float, str]:
    """Order by score, correctness and F1, the worst first; an answer without reference comes before one with it."""
    correctness, f1 = (-1.0 if value is None else value for value in (answer.correctness, answer.f1))
    return answer.score, correctness, f1, answer.question.id


def _named(question: Question) -> str:
    text = printable(" ".join(question.text.split()))
    return f"{printable(question.id)}  {text[:90]}{'…' if len(text) > 90 else ''}"
