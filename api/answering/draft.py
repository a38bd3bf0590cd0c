"""Draft an answer: by Claude, in steps, or by quotes."""

import contextlib
from collections.abc import Generator
from dataclasses import replace

from api.answering import claude, extractive, steps
from api.resources import Resources
from api.verification.citations import Draft, Statement
from shared.models import SearchResult, Step, Waiting
from shared.providers.claude import Deadline
from shared.providers.meter import NOTHING, BudgetError, Tokens


def draft(
    resources: Resources,
    question: str,
    found: SearchResult,
    deadline: Deadline,
    buffered: bool,
    search: steps.Search | None = None,
) -> Generator[Statement | Step | Draft | Waiting]:
    """Yield statements, and last a Draft without statements: its warnings, its usage, and the answerer.

    `search`: lets the model search by itself; its passages come in Steps. Beyond the day's cap the answer is quoted
    from the passages without a model, and a warning explains it.
    """
    answerer = "claude" if resources.claude else "extractive"
    passages, usage = list(found.passages), dict[str, int]()
    warnings: tuple[str, ...] = ()
    if passages and resources.claude:
        task = (resources.claude, resources.settings.anthropic_model, question, found.passages)
        parts = steps.explore(*task, search, deadline) if search else claude.answer(*task, deadline, buffered)
        spent, rest = NOTHING, Draft()
        try:
            with contextlib.closing(parts):
                for part in parts:
                    if isinstance(part, Tokens):
                        spent += part
                        usage = spent.by_name()
                    elif isinstance(part, Draft):
                        rest = part
                    else:
                        if isinstance(part, Step):
                            passages += part.passages
                        yield part
            yield replace(rest, answerer=answerer, usage=usage)
            return
        except BudgetError as error:
            answerer, warnings = "extractive", (f"Quoted from the documents, without a model: {error}",)
    quotes = extractive.extract(question, passages, resources.local)
    yield from quotes.statements
    warnings += quotes.warnings
    yield replace(quotes, statements=(), warnings=warnings, answerer=answerer, usage=usage)
