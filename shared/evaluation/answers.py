"""Measures of answers: whether what they cite is right, whether they refuse where they should, and what they say, take and cost."""

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
from shared.providers.meter import Tokens
from shared.text.words import MARKS, UNSPACED

RECALL, REFUSAL = "citation recall", "refusal recall"
VERDICTS = ("grounded", "partial", "no_answer")
GRADES = {"correct": 1.0, "partly": 0.5, "wrong": 0.0}  # what a judge may say
REFUSED = "refused"  # where it need not be asked

_MARK = re.compile(r"(?<!\w)\[\d{1,4}\]")
_TOKEN = re.compile(rf"[{UNSPACED}]|(?:[^\W{UNSPACED}]|[{MARKS}])+")
_ARTICLES = {"a", "an", "the"}


@dataclass(frozen=True)
class Answered:
    """One question's answer, as POST /ask gives it. `cited`: document, start and end of each citation; `took`: ms.

    `dollars`: what the answering model cost; None: its price is not known. `judged`: a grade or REFUSED; empty: the judge was
    asked, and gave none; None: it was not to be.
    """

    question: Question
    answer: Mapping[str, Any]
    cited: Sequence[tuple[str, int, int]]
    took: float
    tokens: Tokens
    dollars: float | None
    judged: str | None = None

    @property
    def refused(self) -> bool:
        return bool(self.answer["verdict"] == "no_answer")

    @functools.cached_property
    def right(self) -> list[bool]:
        """Of each citation, whether it overlaps a span of the answer; of a question without spans, whether the document is relevant."""
        spans, relevant = self.question.spans, self.question.relevant
        return [
            any(start < last and first < end for first, last in spans.get(name, ())) if spans else name in relevant
            for name, start, end in self.cited
        ]

    @functools.cached_property
    def f1(self) -> float | None:
        """Of the best of the reference answers; None: the question has none."""
        text = "" if self.refused else self.answer["answer"]
        return max((token_f1(text, reference) for reference in self.question.answers), default=None)

    @property
    def correctness(self) -> float | None:
        """By the judge's grade; a refusal where there is an answer is wrong. None: it is not judged."""
        return GRADES.get(self.judged or "", 0.0 if self.judged == REFUSED else None)

    @property
    def score(self) -> float:
        """1: a right citation, or a refusal where that is right."""
        return float(any(self.right) if self.question.answerable else self.refused)


@dataclass(frozen=True, slots=True)
class Judged:
    """What it took to judge answers. `dollars`: None: no price is known. `reason`: why some are not judged, a sentence."""

    model: str
    tokens: Tokens
    dollars: float | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Answers:
    """All answers with one choice of settings. `label`: the choice; `system`: what it ran on; `judged`: None: they were not."""

    label: str
    system: str
    results: list[Answered]
    judged: Judged | None = None

    @property
    def measure(self) -> str:
        """What settings are compared by."""
        return RECALL if any(result.question.answerable for result in self.results) else REFUSAL

    def scores(self) -> list[float]:
        """Of the questions that `measure` is about."""
        wanted = self.measure == RECALL
        return [result.score for result in self.results if result.question.answerable is wanted]

    def summary(self) -> dict[str, float | None]:
        """Shares, then counts, milliseconds, tokens and dollars. None: there is nothing to divide by, or no price is known."""
        results = self.results
        answerable = [result for result in results if result.question.answerable]
        others = [result for result in results if not result.question.answerable]
        f1 = [result.f1 for result in results if result.f1 is not None]
        took = [result.took for result in results]
        found: dict[str, float | None] = {
            "citation precision": _mean([right for result in results for right in result.right]),
            RECALL: _mean([result.score for result in answerable]),
        }
        found |= {"answer F1": _mean(f1)} if f1 else {}
        if self.judged:
            found["judged correctness"] = _mean([r.correctness for r in results if r.correctness is not None])
            found["not judged answers"] = float(len(self.not_judged()))
        if others:
            found["refusal precision"] = _mean([not result.question.answerable for result in results if result.refused])
            found[REFUSAL] = _mean([result.refused for result in others])
        found["false refusals"] = _mean([result.refused for result in answerable])
        found |= {
            f"{verdict} answers": float(sum(r.answer["verdict"] == verdict for r in results)) for verdict in VERDICTS
        }
        dollars = [result.dollars for result in results]
        return (
            found
            | {
                "latency p50 ms": float(np.quantile(took, 0.5)),
                "latency p95 ms": float(np.quantile(took, 0.95)),
                "input tokens": float(
                    sum(r.tokens.input + r.tokens.cache_write + r.tokens.cache_read for r in results)
                ),
                "output tokens": float(sum(r.tokens.output for r in results)),
                "dollars": None if None in dollars else float(sum(d for d in dollars if d is not None)),
            }
            | ({"judge's dollars": self.judged.dollars} if self.judged else {})
        )

    def not_judged(self) -> list[Answered]:
        """Those that the judge gave no grade."""
        return [result for result in self.results if result.judged == ""]


def answered(
    question: Question, answer: Mapping[str, Any], took: float, ids: Mapping[str, str], known: Mapping[str, Price]
) -> Answered:
    """`ids`: file → document of a corpus; `known`: prices of models."""
    cited = [(ids.get(c["source"], c["source"]), c["char_start"], c["char_end"]) for c in answer["citations"]]
    tokens, model = Tokens.of(answer["usage"]), answer["model"]
    dollars = 0.0
    if model is not None:
        dollars = prices.cost(model, tokens.input, tokens.output, tokens.cache_write, tokens.cache_read, known=known)  # type: ignore[assignment]
    return Answered(question, answer, cited, took, tokens, dollars)


def token_f1(answer: str, reference: str) -> float:
    """The harmonic mean of precision and recall of the words (SQuAD: Rajpurkar et al. 2016), without case, punctuation, articles, marks.

    Scripts that put no spaces between words are compared by characters.
    """
    given, wanted = _tokens(answer), _tokens(reference)
    both = sum((given & wanted).values())
    if not given or not wanted:
        return float(given == wanted)
    return 2 * both / (given.total() + wanted.total())


def unmarked(text: str) -> str:
    """An answer without the marks of its citations."""
    return _MARK.sub(" ", text)


def _tokens(text: str) -> Counter[str]:
    text = "" if text.strip() == NO_ANSWER else unicodedata.normalize("NFKC", unmarked(text)).casefold()
    return Counter(token for token in _TOKEN.findall(text) if token not in _ARTICLES)


def _mean(values: Sequence[float | bool]) -> float | None:
    return float(np.mean(values)) if values else None
