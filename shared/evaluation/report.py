"""The HTML report of `askfolder eval`: one file, no script, nothing from elsewhere. Documents are other people's: all text is escaped."""

import html
import math
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np

from shared.evaluation import plots
from shared.evaluation.answers import Answered, Answers
from shared.evaluation.measures import CUT, recall
from shared.evaluation.question_sets import ROUNDS, Result, Run
from shared.evaluation.significance import Difference

CSS = Path(__file__).with_name("report.css")
PASSAGES = 10  # of each question
SNIPPET = 500  # characters of each passage
CURVE = 50


def page(
    title: str, runs: Sequence[Run] | Sequence[Answers], difference: Difference | None, notes: Sequence[str]
) -> str:
    """The whole document. runs: one, or two over the same questions in the same order."""
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # whatever should slip through the escaping can neither run nor call out
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{_what(runs)}: {_e(title)}</title>\n<style>\n{CSS.read_text('utf-8')}</style>\n"
        + "\n".join(_body(title, runs, difference, notes))
        + "\n</html>\n"
    )


def figure(name: str, value: float | None, signed: bool = False) -> str:
    """A share as .123, milliseconds, tokens and answers as 1,234, dollars as 0.0012; `signed`: a difference; None: –."""
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


def judged_by(runs: Sequence[Run] | Sequence[Answers]) -> str:
    """Whose grades they are, where there are some."""
    judged = runs[0].judged if isinstance(runs[0], Answers) else None
    return f", judged by {printable(judged.model)}" if judged else ""


def change(name: str, values: Sequence[float | None]) -> str:
    """B − A."""
    a, b = values
    return figure(name, None if a is None or b is None else b - a, signed=True)


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


def _what(runs: Sequence[Run] | Sequence[Answers]) -> str:
    return "Answers" if isinstance(runs[0], Answers) else "Retrieval"


def _body(
    title: str, runs: Sequence[Run] | Sequence[Answers], difference: Difference | None, notes: Sequence[str]
) -> Iterator[str]:
    yield f'<header><h1>{_what(runs)}: {_e(title)}</h1><p class="quiet">{len(runs[0].results):,} questions, {datetime.now():%Y-%m-%d %H:%M}, askfolder eval{_e(judged_by(runs))}</p><ul class="runs">'
    for side, label, system in zip("ab", [run.label for run in runs], [run.system for run in runs], strict=False):
        key = f'<span class="key {side}">{side.upper()}</span> ' if difference else ""
        yield f'<li>{key}{_e(label)} <span class="quiet">{_e(system)}</span></li>'
    yield "</ul></header>"
    yield from (f'<p class="note">{_e(note)}</p>' for note in notes)
    yield (
        '<div class="top">'
        + _table(runs)
        + (f'<p class="verdict">{_e(verdict(difference))}</p>' if difference else "")
        + "</div>"
    )
    yield from _answers(runs) if isinstance(runs[0], Answers) else _retrieval(runs)  # type: ignore[arg-type]


def _retrieval(runs: Sequence[Run]) -> Iterator[str]:
    yield f'<h2>Plots</h2><div class="plots n{2 + len(runs)}">' + "".join(_plots(runs)) + "</div>"
    yield "<h2>Questions</h2>"
    kinds = [_kinds([run.results[n] for run in runs]) for n in range(len(runs[0].results))]
    yield _filter(
        {"missed": f"None relevant in the first {CUT}", "incomplete": f"Some missing in the first {CUT}"},
        kinds,
        len(runs),
    )
    for number in sorted(range(len(kinds)), key=lambda n: runs[-1].results[n].score):
        yield _question([run.results[number] for run in runs])


def _table(runs: Sequence[Run] | Sequence[Answers]) -> str:
    summaries = [run.summary() for run in runs]
    head = (
        "<tr><th></th>"
        + ('<th class="a">A</th><th class="b">B</th><th>B − A</th>' if len(runs) > 1 else "<th></th>")
        + "</tr>"
    )
    rows = []
    for name in summaries[0]:
        values = [summary[name] for summary in summaries]
        cells = "".join(f"<td>{figure(name, value)}</td>" for value in values)
        cells += f"<td>{change(name, values)}</td>" if len(runs) > 1 else ""
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
    yield _latency([[r.took for r in run.results] for run in runs])
    if len(runs) > 1:
        yield _plot(
            f"{runs[0].measure} of each question. Above the line B is better, below it A.",
            plots.scatter(runs[0].scores(), runs[1].scores(), runs[0].measure, f"{runs[0].measure} with A against B"),
        )


def _latency(times: Sequence[Sequence[float]]) -> str:
    edge = _round_up(max(float(np.quantile(t, 0.99)) for t in times))
    edges = list(np.linspace(0, edge, 13))
    labels = [f"{t:.3g}" if n % 3 == 0 else "" for n, t in enumerate(edges)]
    return _plot(
        "Questions by latency; the slowest 1 % are in the last column.",
        plots.histogram(times, edges, labels, "milliseconds", "Histogram of latency"),
    )


def _plot(caption: str, svg: str) -> str:
    return f"<figure><figcaption>{caption}</figcaption>{svg}</figure>"


def _round_up(value: float) -> float:
    """To a multiple of 12 with one or two digits, so that the ticks are round."""
    unit = 10.0 ** math.floor(math.log10(max(value, 1e-3) / 12))
    return 12 * unit * math.ceil(value / 12 / unit)


def _filter(choices: dict[str, str], kinds: Sequence[set[str]], sides: int) -> str:
    """`choices`: kind of question → words; `kinds`: of each question."""
    choices = {"all": "All", **choices}
    if sides > 1:
        choices |= {"better": "Better with B", "worse": "Worse with B"}
    return (
        '<div class="filter" role="radiogroup" aria-label="Show">'
        + "".join(
            f'<label><input type="radio" name="show" id="show-{name}"{" checked" if name == "all" else ""}>{text} '
            f"({sum(name == 'all' or name in kind for kind in kinds):,})</label>"
            for name, text in choices.items()
        )
        + "</div>"
    )


def _kinds(results: Sequence[Result]) -> set[str]:
    """What the filter knows a question by; with two runs: of the second."""
    last = results[-1]
    kinds = set()
    if last.first is None or last.first > CUT:
        kinds.add("missed")
    if last.values[f"recall@{CUT}"] < 1:
        kinds.add("incomplete")
    return kinds | _changed(results)


def _changed(results: Sequence[Result] | Sequence[Answered]) -> set[str]:
    difference = results[-1].score - results[0].score
    return set() if abs(difference) < 1e-12 else {"better" if difference > 0 else "worse"}


def _question(results: Sequence[Result]) -> str:
    lists = "".join(_side(side, result) for side, result in zip(_sides(results), results, strict=True))
    return _details(results, _kinds(results), results[0].measure, lists)


def _sides(results: Sequence[object]) -> str:
    return "ab" if len(results) > 1 else " "


def _details(results: Sequence[Result] | Sequence[Answered], kinds: set[str], measure: str, lists: str) -> str:
    question = results[0].question
    scores = "".join(
        f'<span class="{side}{"" if value else " zero"}">{figure("", value)}</span>'
        for side, value in zip(_sides(results), (r.score for r in results), strict=True)
    )
    return (
        f'<details class="question {" ".join(sorted(kinds))}"><summary><span class="text"><small>{_e(question.id)}</small>'
        f'{_e(question.text)}</span><span class="score" title="{measure}">{scores}</span></summary><div class="sides">{lists}</div></details>'
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


# --- answers ---------------------------------------------------------------------------------------------------------


def _answers(runs: Sequence[Answers]) -> Iterator[str]:
    yield f'<h2>Plots</h2><div class="plots">{_latency([[r.took for r in run.results] for run in runs])}</div>'
    yield "<h2>Questions</h2>"
    sides = [[run.results[n] for run in runs] for n in range(len(runs[0].results))]
    kinds = [(set() if results[-1].score else {"missed"}) | _changed(results) for results in sides]
    yield _filter({"missed": "No right citation, or no right refusal"}, kinds, len(runs))
    for results, kind in sorted(zip(sides, kinds, strict=True), key=lambda pair: pair[0][-1].score):
        lists = "".join(_answer(side, result) for side, result in zip(_sides(results), results, strict=True))
        yield _details(results, kind, "right citation or refusal", lists)


def _answer(side: str, result: Answered) -> str:
    title = f'<h3 class="key {side}">{side.upper()}</h3>' if side != " " else ""
    question, verdict = result.question, _e(result.answer["verdict"])
    f1 = "" if result.f1 is None else f", F1 {figure('', result.f1)}"
    judged = "" if result.judged is None else f", judged {result.judged}" if result.judged else ", not judged"
    wanted = [f"Right: {_e(answer)}" for answer in question.answers] or (
        [] if question.answerable else ["Nothing answers it."]
    )
    mark = ' <span class="mark">✓ right</span>'
    rows = "".join(
        f'<li class="passage{" relevant" if right else ""}"><span class="rank">{_e(citation["number"])}</span><div>'
        f'<span class="source">{_e(name)}</span>{mark if right else ""}'
        f'<p class="snippet">{_e(str(citation["quote"])[:SNIPPET])}</p></div></li>'
        for citation, (name, _, _), right in zip(result.answer["citations"], result.cited, result.right, strict=True)
    )
    return (
        f'<div>{title}<p class="quiet">{verdict}{f1}{judged}</p><p class="snippet">{_e(result.answer["answer"])}</p>'
        + "".join(f'<p class="lacking">{words}</p>' for words in wanted)
        + f"<ol>{rows or '<li class=quiet>Nothing is cited.</li>'}</ol></div>"
    )
