"""Draft an answer: by Claude, in steps, or by quotes."""

import functools
import time
from collections.abc import Callable, Generator
from dataclasses import replace

from api.answering import extractive
from api.resources import Resources
from api.retrieval.reranking import text_of
from api.verification.citations import Draft, Statement
from shared.models import Passage, SearchResult, Step
from shared.providers.meter import BudgetError, Tokens
from shared.text.tokens import estimate_tokens


def make_draft(
    asker: Resources,
    question: str,
    found: SearchResult,
    usage: dict[str, int],
    deadline: float,
    whole: bool,
    look: Callable[[str], list[Passage]] | None,
    broke: list[str],
) -> Generator[Statement | Step | Draft | None]:
    """Statements, then a Draft with the rest; None: nothing new for a while. `look`: finds what a model searches for by itself; None: it may
    not. `broke`: gets why no model was asked, beyond the cap."""
    settings = asker.settings
    if found.passages and settings.answers_with_claude() and settings.anthropic_api_key:
        from api.answering import (
            claude,  # the SDK takes two seconds to import: only who uses it waits
            prompts,
            steps,
        )

        seconds = deadline - time.monotonic()
        most = Tokens(
            estimate_tokens("\n".join([prompts.SYSTEM, question, *map(text_of, found.passages)])), claude.MAX_TOKENS
        )
        try:
            if look:
                yield from steps.explore(
                    question,
                    found.passages,
                    look,
                    usage,
                    api_key=settings.anthropic_api_key.get_secret_value(),
                    model=settings.anthropic_model,
                    base_url=settings.anthropic_base_url,
                    seconds=seconds,
                    call=functools.partial(asker.meter.call, "answers", settings.anthropic_model),
                )
                return
            with asker.meter.call("answers", settings.anthropic_model, most, seconds) as call:
                yield from claude.answer(
                    question,
                    found.passages,
                    usage,
                    api_key=settings.anthropic_api_key.get_secret_value(),
                    model=settings.anthropic_model,
                    base_url=settings.anthropic_base_url,
                    seconds=seconds,
                    whole=whole,
                    call=call,
                )
            return
        except BudgetError as error:
            broke.append(f"Quoted from the documents, without a model: {error}")
    draft = extractive.extract(question, found.passages, asker.local)
    yield from draft.statements
    yield replace(draft, statements=(), warnings=(*broke, *draft.warnings))
