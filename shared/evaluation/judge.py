"""Grades of answers by a model, which compares them with reference answers. answers.py has the measures."""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace

from shared import prices
from shared.errors import AskfolderError, PermanentError, RefusedError
from shared.evaluation.answers import GRADES, REFUSED, Answered, Judged, unmarked
from shared.prices import Price
from shared.providers.claude import Claude, prompt
from shared.providers.meter import BudgetError
from shared.text.tokens import encodable

MAX_TOKENS = 2048  # of a grade and the thoughts before it
SECONDS = 60.0  # for one answer, retries included
AT_ONCE = 4

SYSTEM = prompt(__file__, "judge.md").format(grades=", ".join(GRADES))


@dataclass(frozen=True, slots=True)
class _Grade:
    """A grade of one answer. None: the question has no reference; "": there is no grade, and `reason` explains it.

    `final`: True if further requests would fail for the same reason.
    """

    grade: str | None
    reason: str = ""
    final: bool = False


@dataclass(frozen=True)
class Judge:
    """A model that grades answers. `known`: prices of models."""

    claude: Claude
    model: str
    known: Mapping[str, Price]

    def judge(self, results: Sequence[Answered]) -> tuple[list[Answered], Judged]:
        """Grade the answers whose questions have a reference. Refusals are not sent.

        An answer is not judged if its grade does not come in time, or is none of GRADES. Nothing more is sent after an
        error that would come again, such as the day's cap.
        """
        completed: list[_Grade] = []  # in the order of time, unlike the answers

        def grade(result: Answered) -> _Grade:
            if not result.question.answers:
                return _Grade(None)
            if result.refused:
                return _Grade(REFUSED)
            if any(grade.final for grade in completed):
                return _Grade("")
            completed.append(graded := self._grade(result))
            return graded

        before = self.claude.meter.spent("judging")
        threads = ThreadPoolExecutor(AT_ONCE, "judge")
        try:
            grades = list(threads.map(grade, results))
        finally:
            threads.shutdown(cancel_futures=True)
        tokens = self.claude.meter.spent("judging") - before
        dollars = prices.cost(self.model, **asdict(tokens), known=self.known)
        judged = [replace(result, judged=grade.grade) for result, grade in zip(results, grades, strict=True)]
        failures = sorted((grade for grade in completed if grade.reason), key=lambda grade: not grade.final)
        return judged, Judged(self.model, tokens, dollars, failures[0].reason if failures else "")

    def _grade(self, result: Answered) -> _Grade:
        parts = {
            "question": result.question.text,
            "references": list(result.question.answers),
            "answer": unmarked(result.answer["answer"]).strip(),
        }
        content = encodable(json.dumps(parts, ensure_ascii=False))
        try:
            reply = self.claude.complete("judging", self.model, SYSTEM, content, MAX_TOKENS, SECONDS)
        except AskfolderError as error:
            final = isinstance(error, BudgetError | PermanentError) and not isinstance(error, RefusedError)
            return _Grade("", str(error), final)
        grade = reply.text.strip(" \n.!\"'*").lower()
        if grade in GRADES:
            return _Grade(grade)
        return _Grade("", f"{self.model} replied with something else than {', '.join(GRADES)}.")
