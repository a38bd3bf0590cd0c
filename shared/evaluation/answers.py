"""Measures of answers: citations, refusals, words, latency and cost."""

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shared import prices
from shared.evaluation.question_sets import Question
from shared.models import NO_ANSWER
from shared.prices import Price
from shared.providers.meter import NOTHING, Tokens
from shared.text.words import MARKS, UNSPACED

RECALL, REFUSAL = "citation recall", "refusal recall"
VERDICTS = ("grounded", "quoted", "partial", "no_answer")
GRADES = {"correct": 1.0, "partly": 0.5, "wrong": 0.0}  # the judge's words
REFUSED = "refused"  # the judge is not asked

_MARK = re.compile(r"(?<!\w)\[\d{1,4}\]")
_TOKEN = re.compile(rf"[{UNSPACED}]|(?:[^\W{UNSPACED}]|[{MARKS}])+")
_ARTICLES = {"a", "an", "the"}


@dataclass(frozen=True)
class Answered:
    """The answer of POST /ask to one question. `cited`: document, start and end of each citation; `took`: milliseconds.

    `dollars`: cost of the answering model; None if its price is not known. `judged`: a grade or REFUSED; '' if the
    judge gave no grade; None if the answer was not judged.
    """

    question: Question
    answer: Mapping[str, Any]
    cited: Sequence[tuple[str, int, int]]
    took: float
    tokens: Tokens
    dollars: float | None
    judged: str | None = None

    @property
    def warnings(self) -> Sequence[str]:
        return self.answer["warnings"]  # type: ignore[no-any-return]

    @property
    def refused(self) -> bool:
        return bool(self.answer["verdict"] == "no_answer")

    @functools.cached_property
    def right(self) -> list[bool]:
        """For each citation: True if it overlaps a span of the question; without spans, if its document is relevant."""
        spans, relevant = self.question.spans, self.question.relevant
        return [
            any(start < last and first < end for first, last in spans.get(name, ())) if spans else name in relevant
            for name, start, end in self.cited
        ]

    @functools.cached_property
    def f1(self) -> float | None:
        """The best F1 over the reference answers; None if the question has none."""
        text = "" if self.refused else self.answer["answer"]
        return max((token_f1(text, reference) for reference in self.question.answers), default=None)

    @property
    def correctness(self) -> float | None:
        """The judge's grade as a number; a refusal where there is an answer is wrong. None if it is not judged."""
        return GRADES.get(self.judged or "", 0.0 if self.judged == REFUSED else None)

    @property
    def score(self) -> float:
        """1 for a right citation, or for a refusal of an unanswerable question; else 0."""
        return float(any(self.right) if self.question.answerable else self.refused)


@dataclass(frozen=True, slots=True)
class Judged:
    """The cost of judging. `dollars`: None if no price is known. `reason`: why some answers were not judged."""

    model: str
    tokens: Tokens
    dollars: float | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers with one choice of settings. `label`: the choice; `system`: its documents and embedder."""

    label: str
    system: str
    results: list[Answered]
    judged: Judged | None = None

    @property
    def measure(self) -> str:
        """The measure that compares settings."""
        return RECALL if any(result.question.answerable for result in self.results) else REFUSAL

    def scores(self) -> list[float]:
        """The scores of the questions that `measure` is about."""
        wanted = self.measure == RECALL
        return [result.score for result in self.results if result.question.answerable is wanted]

    def summary(self) -> dict[str, float | None]:
        """Return shares, counts, milliseconds, tokens, dollars. None: nothing to divide by, or no price is known."""
        results = self.results
        answerable = [result for result in results if result.question.answerable]
        others = [result for result in results if not result.question.answerable]
        f1 = [result.f1 for result in results if result.f1 is not None]
        took = [result.took for result in results]
        tokens = sum((result.tokens for result in results), NOTHING)
        dollars = [result.dollars for result in results if result.dollars is not None]
        summary: dict[str, float | None] = {
            "citation precision": _mean([right for result in results for right in result.right]),
            RECALL: _mean([result.score for result in answerable]),
        }
        if f1:
            summary["answer F1"] = _mean(f1)
        if self.judged:
            summary["judged correctness"] = _mean([r.correctness for r in results if r.correctness is not None])
            summary["not judged answers"] = float(len(self.not_judged()))
        if others:
            summary["refusal precision"] = _mean([not r.question.answerable for r in results if r.refused])
            summary[REFUSAL] = _mean([result.refused for result in others])
        summary["false refusals"] = _mean([result.refused for result in answerable])
        for verdict in VERDICTS:
            summary[f"{verdict} answers"] = float(sum(result.answer["verdict"] == verdict for result in results))
        summary["latency p50 ms"] = float(np.quantile(took, 0.5))
        summary["latency p95 ms"] = float(np.quantile(took, 0.95))
        summary["input tokens"] = float(tokens.input + tokens.cache_write + tokens.cache_read)
        summary["output tokens"] = float(tokens.output)
        summary["dollars"] = float(sum(dollars)) if len(dollars) == len(results) else None
        if self.judged:
            summary["judge's dollars"] = self.judged.dollars
        return summary

    def not_judged(self) -> list[Answered]:
        """The answers that the judge gave no grade."""
        return [result for result in self.results if result.judged == ""]


def answered(
    question: Question, answer: Mapping[str, Any], took: float, ids: Mapping[str, str], known: Mapping[str, Price]
) -> Answered:
    """Build the Answered. `ids`: file → document of a corpus; `known`: prices of models."""
    cited = [(ids.get(c["source"], c["source"]), c["char_start"], c["char_end"]) for c in answer["citations"]]
    tokens, model = Tokens.of(answer["usage"]), answer["model"]
    dollars = 0.0
    if model is not None:
        dollars = prices.cost(model, tokens.input, tokens.output, tokens.cache_write, tokens.cache_read, known=known)  # type: ignore[assignment]
    return Answered(question, answer, cited, took, tokens, dollars)


def token_f1(answer: str, reference: str) -> float:
    """The harmonic mean of precision and recall of the words (SQuAD: Rajpurkar et al. 2016).

    Case, punctuation, articles and citation marks do not count. Scripts without spaces are compared by characters.
    """
    answered, expected = _tokens(answer), _tokens(reference)
    if not answered or not expected:
        return float(answered == expected)
    return 2 * (answered & expected).total() / (answered.total() + expected.total())


def unmarked(text: str) -> str:
    """The answer without its citation marks."""
    return _MARK.sub(" ", text)


def _tokens(text: str) -> Counter[str]:
    text = "" if text.strip() == NO_ANSWER else unicodedata.normalize("NFKC", unmarked(text)).casefold()
    return Counter(token for token in _TOKEN.findall(text) if token not in _ARTICLES)


def _mean(values: Sequence[float | bool]) -> float | None:
    return float(np.mean(values)) if values else None
