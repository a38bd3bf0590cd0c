"""The HTML report of `askfolder eval`: one file, no script, nothing from elsewhere. Documents are other people's: all text is escaped."""

import html
import math
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np

from shared import plots
from shared.evaluation import CUT, ROUNDS, Difference, Result, Run, recall

CSS = Path(__file__).with_name("report.css")
PASSAGES = 10  # of each question
SNIPPET = 500  # characters of each passage
CURVE = 50


def page(title: str, runs: Sequence[Run], difference: Difference | None, notes: Sequence[str]) -> str:
    """The whole document. runs: one, or two over the same questions in the same order."""
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # whatever should slip through the escaping can neither run nor call out
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>Retrieval: {_e(title)}</title>\n<style>\n{CSS.read_text('utf-8')}</style>\n"
        + "\n".join(_body(title, runs, difference, notes))
        + "\n</html>\n"
    )


def figure(name: str, value: float, signed: bool = False) -> str:
    """A share as .123, milliseconds as 12; `signed`: a difference."""
    text = f"{value:{'+' if signed else ''}.{0 if name.endswith('ms') else 3}f}"
    if text.strip("+-0.") == "":
        text = text.lstrip("+-")
    return text.replace("0.", ".", 1) if text.lstrip("+-").startswith("0.") else text


def verdict(difference: Difference) -> str:
    """What the test says, in words."""
    p = "p < .001" if difference.p < 0.001 else f"p = {figure('p', difference.p)}"
    chance = "so it is hardly chance" if difference.p < 0.05 else "so it may be chance"
    return (
        f"{difference.measure}: B − A = {figure('', difference.mean, True)}, {p}, {chance} (paired randomisation test, {ROUNDS:,} rounds). "
        f"95 % interval {figure('', difference.low, True)} to {figure('', difference.high, True)}. "
        f"B is better for {difference.wins:,} questions, worse for {difference.losses:,}, the same for {difference.ties:,}."
    )


def printable(text: str) -> str:
    """Without control and other unprintable characters, line ends and tabs aside."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def _e(text: object) -> str:
    return html.escape(printable(str(text)))


def _body(title: str, runs: Sequence[Run], difference: Difference | None, notes: Sequence[str]) -> Iterator[str]:
    yield f'<header><h1>Retrieval: {_e(title)}</h1><p class="quiet">{len(runs[0].results):,} questions, {datetime.now():%Y-%m-%d %H:%M}, askfolder eval</p><ul class="runs">'
    for side, run in zip("ab", runs, strict=False):
        key = f'<span class="key {side}">{side.upper()}</span> ' if difference else ""
        yield f'<li>{key}{_e(run.label)} <span class="quiet">{_e(run.system)}</span></li>'
    yield "</ul></header>"
    yield from (f'<p class="note">{_e(note)}</p>' for note in notes)
    yield '<div class="top">' + _table(runs) + (f'<p class="verdict">{_e(verdict(difference))}</p>' if difference else "") + "</div>"  # fmt: skip
    yield f'<h2>Plots</h2><div class="plots n{2 + len(runs)}">' + "".join(_plots(runs)) + "</div>"
    yield "<h2>Questions</h2>"
    yield _filter(runs)
    worst = sorted(range(len(runs[-1].results)), key=lambda n: runs[-1].results[n].score)
    for number in worst:
        yield _question([run.results[number] for run in runs])


def _table(runs: Sequence[Run]) -> str:
    summaries = [run.summary() for run in runs]
    head = "<tr><th></th>" + ('<th class="a">A</th><th class="b">B</th><th>B − A</th>' if len(runs) > 1 else "<th></th>") + "</tr>"  # fmt: skip
    rows = []
    for name in summaries[0]:
        values = [summary[name] for summary in summaries]
        cells = "".join(f"<td>{figure(name, value)}</td>" for value in values)
        cells += f"<td>{figure(name, values[1] - values[0], True)}</td>" if len(runs) > 1 else ""
        kind = "main" if name == runs[0].measure else "time" if name.endswith("ms") else ""
        rows.append(f'<tr class="{kind}"><th scope="row">{name}</th>{cells}</tr>')
    return f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"


def _plots(runs: Sequence[Run]) -> Iterator[str]:
    both = " A solid, B dashed." if len(runs) > 1 else ""
    tenths = [n / 10 for n in range(11)]
    labels = [f"{n:g}" if round(n * 10) % 2 == 0 else "" for n in tenths]
    yield _plot(
        f"Questions by {runs[0].measure}",
        plots.histogram([r.scores() for r in runs], tenths, labels, runs[0].measure, f"Histogram of {runs[0].measure}"),
    )
    lines = [
        [float(np.mean([recall(r.ranking, r.question.relevant, k) for r in run.results])) for k in range(1, CURVE + 1)]
        for run in runs
    ]
    yield _plot(f"Recall by number of documents looked at.{both}", plots.curves(lines, "first k documents", "Recall@k"))
    times = [[r.took for r in run.results] for run in runs]
    edge = _round_up(max(float(np.quantile(t, 0.99)) for t in times))
    edges = list(np.linspace(0, edge, 13))
    labels = [f"{t:.3g}" if n % 3 == 0 else "" for n, t in enumerate(edges)]
    yield _plot(
        "Questions by latency; the slowest 1 % are in the last column.",
        plots.histogram(times, edges, labels, "milliseconds", "Histogram of latency"),
    )
    if len(runs) > 1:
        yield _plot(
            f"{runs[0].measure} of each question. Above the line B is better, below it A.",
            plots.scatter(runs[0].scores(), runs[1].scores(), runs[0].measure, f"{runs[0].measure} with A against B"),
        )


def _plot(caption: str, svg: str) -> str:
    return f"<figure><figcaption>{caption}</figcaption>{svg}</figure>"


def _round_up(value: float) -> float:
    """To a multiple of 12 with one or two digits, so that the ticks are round."""
    unit = 10.0 ** math.floor(math.log10(max(value, 1e-3) / 12))
    return 12 * unit * math.ceil(value / 12 / unit)


def _filter(runs: Sequence[Run]) -> str:
    kinds = [_kinds([run.results[n] for run in runs]) for n in range(len(runs[0].results))]
    choices = {"all": "All", "missed": f"None relevant in the first {CUT}", "incomplete": f"Some missing in the first {CUT}"}  # fmt: skip
    if len(runs) > 1:
        choices |= {"better": "Better with B", "worse": "Worse with B"}
    return '<div class="filter" role="radiogroup" aria-label="Show">' + "".join(
        f'<label><input type="radio" name="show" id="show-{name}"{" checked" if name == "all" else ""}>{text} '
        f"({sum(name == 'all' or name in kind for kind in kinds):,})</label>"
        for name, text in choices.items()
    ) + "</div>"  # fmt: skip


def _kinds(results: Sequence[Result]) -> set[str]:
    """What the filter knows a question by; with two runs: of the second."""
    last = results[-1]
    kinds = set()
    if last.first is None or last.first > CUT:
        kinds.add("missed")
    if last.values[f"recall@{CUT}"] < 1:
        kinds.add("incomplete")
    change = last.score - results[0].score
    if abs(change) > 1e-12:
        kinds.add("better" if change > 0 else "worse")
    return kinds


def _question(results: Sequence[Result]) -> str:
    question = results[0].question
    sides = "ab" if len(results) > 1 else " "
    scores = "".join(
        f'<span class="{side}{"" if value else " zero"}">{figure("", value)}</span>'
        for side, value in zip(sides, (r.score for r in results), strict=True)
    )
    lists = "".join(_side(side, result) for side, result in zip(sides, results, strict=True))
    return (
        f'<details class="question {" ".join(sorted(_kinds(results)))}"><summary><span class="text"><small>{_e(question.id)}</small>'
        f'{_e(question.text)}</span><span class="score" title="{results[0].measure}">{scores}</span></summary><div class="sides">{lists}</div></details>'
    )


def _side(side: str, result: Result) -> str:
    relevant = result.question.relevant
    rows = [
        _passage(rank, name, passage, relevant.get(name))
        for rank, (name, passage) in enumerate(zip(result.ranking, result.passages, strict=True), 1)
        if rank <= PASSAGES
    ]
    later = [(rank, name) for rank, name in enumerate(result.ranking, 1) if rank > PASSAGES and name in relevant]
    lacking = [f"{_e(name)} (rank {rank})" for rank, name in later] + [
        f"{_e(name)} (not found)" for name in result.missing
    ]
    shown = f'<p class="lacking">Missed: {", ".join(lacking)}</p>' if lacking else ""
    title = f'<h3 class="key {side}">{side.upper()}</h3>' if side != " " else ""
    return f"<div>{title}{shown}<ol>{''.join(rows) or '<li class=quiet>Nothing was found.</li>'}</ol></div>"


def _passage(rank: int, name: str, passage: dict[str, object], grade: int | None) -> str:
    content = str(passage["content"]).strip()
    heading = passage.get("heading")
    parts = [" › ".join(_e(part) for part in heading)] if isinstance(heading, (list, tuple)) else []
    if passage.get("page") is not None:
        parts.append(f"page {_e(passage['page'])}")
    score = passage.get("score")
    parts.append(f"score {score:.3f}" if isinstance(score, (int, float)) else "")
    mark = "" if grade is None else f' <span class="mark">✓ relevant{f" ({grade})" if grade > 1 else ""}</span>'
    return (
        f'<li class="passage{"" if grade is None else " relevant"}"><span class="rank">{rank}</span><div><span class="source">{_e(name)}</span>{mark} '
        f'<span class="place">{" · ".join(part for part in parts if part)}</span>'
        f'<p class="snippet">{_e(content[:SNIPPET])}{"…" if len(content) > SNIPPET else ""}</p></div></li>'
    )
