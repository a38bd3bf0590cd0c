"""Question sets, and the results of searching for their documents."""

import functools
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shared.errors import PermanentError
from shared.evaluation.measures import CUT, SPAN_PASSAGES, Span, covered, measures


@dataclass(frozen=True, slots=True)
class Question:
    """`relevant`: document → grade ≥ 1; a document is a path in the index or an id of the corpus.

    `spans`: document → positions of the answer. `answerable`: False if no document answers the question, and none is
    relevant. `answers`: reference answers, each of them right.
    """

    id: str
    text: str
    relevant: Mapping[str, int]
    spans: Mapping[str, Sequence[Span]] = field(default_factory=dict)
    answerable: bool = True
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """The result of one question. `ranking`: documents, best first; `passages`: the best one of each, from the API.

    `took`, `embedding`: milliseconds. `places`: document, start and end of every passage, best first.
    """

    question: Question
    ranking: list[str]
    passages: list[dict[str, Any]]
    took: float
    embedding: float
    places: Sequence[tuple[str, int, int]] = ()
    warnings: Sequence[str] = ()

    @property
    def measure(self) -> str:
        """The measure that orders and compares questions; by spans where the question has some."""
        return f"span recall@{SPAN_PASSAGES}" if self.question.spans else f"nDCG@{CUT}"

    @property
    def score(self) -> float:
        return self.values[self.measure]

    @functools.cached_property
    def values(self) -> dict[str, float]:
        found = measures(self.ranking, self.question.relevant)
        return found | (covered(self.places, self.question.spans) if self.question.spans else {})

    @property
    def first(self) -> int | None:
        """The rank of the first relevant document."""
        return next((rank for rank, name in enumerate(self.ranking, 1) if name in self.question.relevant), None)

    @property
    def missing(self) -> list[str]:
        """Relevant documents that were not found."""
        return sorted(self.question.relevant.keys() - set(self.ranking))


@dataclass(frozen=True, slots=True)
class Run:
    """The results with one choice of settings. `label`: the choice; `system`: its documents and embedder."""

    label: str
    system: str
    results: list[Result]

    def summary(self) -> dict[str, float]:
        """Averages of the measures, then milliseconds."""
        values = [result.values for result in self.results]
        took = [result.took for result in self.results]
        means = {name: float(np.mean([v[name] for v in values])) for name in values[0]}
        return means | {
            "latency p50 ms": float(np.quantile(took, 0.5)),
            "latency p95 ms": float(np.quantile(took, 0.95)),
            "embedding p50 ms": float(np.median([result.embedding for result in self.results])),
        }

    @property
    def measure(self) -> str:
        return self.results[0].measure

    def scores(self) -> list[float]:
        return [result.score for result in self.results]


def read_questions(path: Path) -> list[Question]:
    """Read a JSONL file of {question, relevant, id?, spans?, answer?, answerable?}.

    Raises PermanentError with a sentence that names the line.
    """
    questions = [_question(row, number, f"{path}, line {number}") for number, row in _rows(path)]
    if len({bool(question.spans) for question in questions if question.answerable}) > 1:
        raise PermanentError(f"{path}: give spans for all questions, or for none.")
    return _distinct(questions, path)


def _question(row: dict[str, Any], number: int, place: str) -> Question:
    text, relevant = row.get("question"), row.get("relevant")
    if not isinstance(text, str) or not text.strip():
        raise PermanentError(f'{place} has no "question".')
    name, text = str(row.get("id", number)), text.strip()
    answerable, answers = row.get("answerable", True), row.get("answer", [])
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise PermanentError(f'{place}: "answer" must be a text, or a list of correct texts.')
    if type(answerable) is not bool or (not answerable and (relevant or row.get("spans") or answers)):
        raise PermanentError(f'{place}: "answerable" must be true, or false without "relevant", "spans" and "answer".')
    if not answerable:
        return Question(name, text, {}, answerable=False)
    spans = _spans(row.get("spans", {}), place)
    if relevant is None and spans:
        relevant = list(spans)
    if isinstance(relevant, list) and all(isinstance(path, str) for path in relevant):
        relevant = dict.fromkeys(relevant, 1)
    if not isinstance(relevant, dict) or not all(type(grade) is int for grade in relevant.values()):
        raise PermanentError(f'{place}: "relevant" must be ["path", …] or {{"path": grade, …}} with whole numbers.')
    relevant = {path: grade for path, grade in relevant.items() if grade >= 1}
    if not relevant:
        raise PermanentError(f"{place} names no relevant document: such a question can't be measured.")
    return Question(name, text, relevant, spans, answers=tuple(answers))


def _spans(value: Any, place: str) -> dict[str, list[Span]]:
    try:
        spans = {name: [_span(*pair) for pair in pairs] for name, pairs in value.items()}
        if all(spans.values()):
            return spans
    except (AttributeError, TypeError, ValueError):
        pass
    raise PermanentError(f'{place}: "spans" must be {{"path": [[start, end], …]}} in characters.')


def _span(start: Any, end: Any) -> Span:
    if type(start) is int and type(end) is int and 0 <= start < end:
        return start, end
    raise ValueError


def read_beir(folder: Path) -> list[Question]:
    """Read the questions with a relevant document from a folder in the BEIR layout, in the order of queries.jsonl."""
    judged: dict[str, dict[str, int]] = {}
    qrels = _file(folder / "qrels", "test.tsv")
    for number, line in _lines(qrels):
        cells = line.split("\t")
        if number == 1 and not cells[-1].strip().lstrip("-").isdigit():
            continue  # the header
        try:
            query, document, grade = cells[0], cells[-2], int(cells[-1])  # the four columns of TREC are taken too
        except (ValueError, IndexError):
            raise PermanentError(
                f"{qrels}, line {number} must be query-id, corpus-id and grade, separated by tabs."
            ) from None
        if grade >= 1:
            judged.setdefault(query, {})[document] = grade
    if not judged:
        raise PermanentError(f"{qrels} names no relevant document, so nothing can be measured.")
    queries = _file(folder, "queries.jsonl")
    questions = []
    for number, row in _rows(queries):
        name, text = _text(row, "_id", queries, number), _text(row, "text", queries, number)
        if name in judged and text.strip():
            questions.append(Question(name, text.strip(), judged[name]))
    if not questions:
        raise PermanentError(f"No question of {queries} is among those that {qrels} judges.")
    return _distinct(questions, queries)


def read_corpus(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Yield id, title and text of each document of a folder in the BEIR layout."""
    corpus = _file(folder, "corpus.jsonl")
    for number, row in _rows(corpus):
        name, text = _text(row, "_id", corpus, number), _text(row, "text", corpus, number)
        title = row.get("title")
        yield name, title if isinstance(title, str) else "", text


def _file(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise PermanentError(f"{folder / name} (or {name}.gz) does not exist: see docs/evaluation.md for the layout.")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not empty, with their numbers from 1."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except UnicodeDecodeError:
        raise PermanentError(f"{path} is not UTF-8.") from None
    except (OSError, EOFError) as error:
        raise PermanentError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error}).") from None


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise PermanentError(f"{path}, line {number} is not JSON: {error}.") from None
        if not isinstance(row, dict):
            raise PermanentError(f"{path}, line {number} is not a JSON object.")
        yield number, row


def _text(row: dict[str, Any], name: str, path: Path, number: int) -> str:
    value = row.get(name)
    if isinstance(value, str) or (name == "_id" and type(value) is int):
        return str(value)
    raise PermanentError(f'{path}, line {number} has no "{name}".')


def _distinct(questions: list[Question], path: Path) -> list[Question]:
    if not questions:
        raise PermanentError(f"{path} holds no question.")
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise PermanentError(f"{path} has the id {question.id} twice.")
        seen.add(question.id)
    return questions
