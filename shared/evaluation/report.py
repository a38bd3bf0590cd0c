"""The HTML report of `askfolder eval`: one file without scripts and links. The template escapes all text."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from shared.evaluation.answers import Answered, Answers
from shared.evaluation.measures import CUT
from shared.evaluation.question_sets import Result, Run
from shared.evaluation.significance import ROUNDS, Difference
from shared.text.printable import JOINERS, printable

PASSAGES = 10  # of each question
SNIPPET = 500  # characters of each passage
Runs = Sequence[Run] | Sequence[Answers]  # one, or two over the same questions in the same order


def page(title: str, runs: Runs, difference: Difference | None, notes: Sequence[str]) -> str:
    """Render the report of one run, or of two over the same questions in the same order."""
    subject, choices = (
        "Retrieval",
        {
            "missed": f"None relevant in the first {CUT}",
            "incomplete": f"Some missing in the first {CUT}",
        },
    )
    if isinstance(runs[0], Answers):
        subject, choices = "Answers", {"missed": "No right citation, or no right refusal"}
    if len(runs) > 1:
        choices |= {"better": "Better with B", "worse": "Worse with B"}
    questions: list[Sequence[Any]] = list(zip(*(run.results for run in runs), strict=True))
    rows = [(_kinds(results), results) for results in sorted(questions, key=lambda results: results[-1].score)]
    counts = [(name, words, sum(name in kinds for kinds, _ in rows)) for name, words in choices.items()]
    summaries = [run.summary() for run in runs]
    return _ENVIRONMENT.get_template("report.html.j2").render(
        title=title,
        subject=subject,
        time=f"{datetime.now():%Y-%m-%d %H:%M}",
        runs=runs,
        sides="ab" if len(runs) > 1 else [""],
        difference=difference,
        notes=notes,
        measures={name: [summary[name] for summary in summaries] for name in summaries[0]},
        filters=[("all", "All", len(rows)), *counts],
        rows=rows,
        score_name="right citation or refusal" if subject == "Answers" else runs[0].measure,
    )


def figure(name: str, value: float | None, signed: bool = False) -> str:
    """Format a share as .123, a count or milliseconds as 1,234, dollars as 0.0012, None as –. `signed`: as a change."""
    if value is None:
        return "–"
    if name.endswith(("ms", "tokens", "answers")):
        return f"{value:{'+' if signed and abs(value) >= 0.5 else ''},.0f}"
    if name.endswith("dollars"):
        return f"{value:{'+' if signed else ''}.4f}"
    text = f"{value:{'+' if signed else ''}.3f}"
    if text.strip("+-0.") == "":
        text = text.lstrip("+-")
    return text.replace("0.", ".", 1) if text.lstrip("+-").startswith("0.") else text


def change(name: str, values: Sequence[float | None]) -> str:
    """B − A."""
    a, b = values
    return figure(name, None if a is None or b is None else b - a, signed=True)


def judged_by(runs: Runs) -> str:
    """The judge's model, to append to a line; empty without grades."""
    judged = runs[0].judged if isinstance(runs[0], Answers) else None
    return f", judged by {printable(judged.model)}" if judged else ""


def verdict(difference: Difference) -> str:
    """The result of the significance test in words."""
    p = "p < .001" if difference.p < 0.001 else f"p = {figure('p', difference.p)}"
    chance = "so it is hardly chance" if difference.p < 0.05 else "so it may be chance"
    mean, low, high = (figure("", value, True) for value in (difference.mean, difference.low, difference.high))
    return (
        f"{difference.measure}: B − A = {mean}, {p}, {chance} (paired randomisation test, {ROUNDS:,} rounds). "
        f"95 % interval {low} to {high}. "
        f"B is better for {difference.wins:,} questions, worse for {difference.losses:,}, "
        f"the same for {difference.ties:,}."
    )


def _kinds(results: Sequence[Result] | Sequence[Answered]) -> list[str]:
    """The filters that show a question; with two runs by the second."""
    first, last = results[0], results[-1]
    change = last.score - first.score
    kinds = {"better": change > 1e-12, "worse": change < -1e-12}
    if isinstance(last, Result):
        kinds["missed"] = last.first is None or last.first > CUT
        kinds["incomplete"] = last.values[f"recall@{CUT}"] < 1
    else:
        kinds["missed"] = not last.score
    return sorted(name for name, applies in kinds.items() if applies)


def _missed(result: Result) -> list[str]:
    """Relevant documents that the report does not show among the passages."""
    later = [(rank, name) for rank, name in enumerate(result.ranking, 1) if rank > PASSAGES]
    ranks = [f"{name} (rank {rank})" for rank, name in later if name in result.question.relevant]
    return ranks + [f"{name} (not found)" for name in result.missing]


def _place(passage: dict[str, Any]) -> str:
    """Heading, page and score of a passage, where they are known."""
    heading, score = passage.get("heading"), passage.get("score")
    parts = [" › ".join(heading)] if isinstance(heading, list | tuple) else []
    parts += [f"page {passage['page']}"] if passage.get("page") is not None else []
    parts += [f"score {score:.3f}"] if isinstance(score, int | float) else []
    return " · ".join(part for part in parts if part)


def _printed(value: object) -> object:
    return value if isinstance(value, Markup) else printable(str(value), JOINERS + "\n\t")


_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    finalize=_printed,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.globals.update(
    zip=zip,
    figure=figure,
    change=change,
    judged_by=judged_by,
    verdict=verdict,
    missed=_missed,
    place=_place,
    shown_passages=PASSAGES,
    snippet_length=SNIPPET,
)
