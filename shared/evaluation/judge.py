"""Grades of answers by a model, which compares them with reference answers. answers.py has the measures."""

import json
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

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
    """A grade of one answer: None if the question has no reference, "" if there is no grade, for a `reason`.

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
        stopped = threading.Event()

        def grade(result: Answered) -> _Grade:
            if stopped.is_set() and result.question.answers and not result.refused:
                return _Grade("")
            grade = self._grade(result)
            if grade.final:
                stopped.set()
            return grade

        before = self.claude.spent("judging")
        threads = ThreadPoolExecutor(AT_ONCE, "judge")
        try:
            grades = list(threads.map(grade, results))
        finally:
            threads.shutdown(cancel_futures=True)
        tokens = self.claude.spent("judging") - before
        dollars = prices.cost(
            self.model, tokens.input, tokens.output, tokens.cache_write, tokens.cache_read, known=self.known
        )
        graded = [replace(result, judged=grade.grade) for result, grade in zip(results, grades, strict=True)]
        reasons = [grade.reason for grade in sorted(grades, key=lambda grade: not grade.final) if grade.reason]
        return graded, Judged(self.model, tokens, dollars, next(iter(reasons), ""))

    def _grade(self, result: Answered) -> _Grade:
        question = result.question
        if not question.answers:
            return _Grade(None)
        if result.refused:
            return _Grade(REFUSED)
        parts = {
            "question": question.text,
            "references": list(question.answers),
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
