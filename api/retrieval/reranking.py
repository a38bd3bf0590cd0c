"""Rerank the first passages of a result, if a reranker is set up.

A reranker that fails or is late costs no answer: the passages keep their order, and a warning says why.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from api.retrieval.rerankers import ClaudeReranker, LocalReranker, Reranker
from shared.errors import AskfolderError, TransientError
from shared.log import log
from shared.models import Passage
from shared.providers import voyage
from shared.providers.claude import Claude
from shared.providers.meter import UNMETERED, BudgetError, Meter
from shared.providers.rerank import VoyageReranker
from shared.settings import ROOT, Settings

CANDIDATES = 50  # passages that are reranked; the others keep their places behind them
FAILURES = 3  # in a row, after which the reranker rests
REST = 30.0  # seconds
LONGEST_REST = 300.0  # seconds, whatever the other side asks for


class Reranking:
    """A reranker, and a circuit breaker around it. Threads share it."""

    def __init__(self, reranker: Reranker, label: str) -> None:
        """`label`: the reranker's name in a warning."""
        self.reranker = reranker
        self.label = label
        self._lock = threading.Lock()
        self._failures = 0
        self._rests_until = 0.0

    def order(self, question: str, passages: Sequence[Passage]) -> tuple[list[Passage], list[str]]:
        """The passages, the first CANDIDATES by `rerank_score`; and a warning if they could not be reranked."""
        head, tail = passages[:CANDIDATES], passages[CANDIDATES:]
        if not head:
            return list(passages), []
        if reason := self._resting():
            return list(passages), [_warning(reason)]
        texts = [text_of(passage) for passage in head]
        distinct = list(dict.fromkeys(texts))  # copies of a file are scored once
        try:
            scores = dict(zip(distinct, self.reranker.rerank(question, distinct).tolist(), strict=True))
        except BudgetError as error:  # the reranker is well, and is asked again once the cap allows it
            return list(passages), [_warning(str(error))]
        except AskfolderError as error:
            self._failed(error.retry_after if isinstance(error, TransientError) else None)
            log.warning(str(error), action="question.not_reranked")
            return list(passages), [_warning(str(error))]
        except Exception as error:  # a defect here must not cost the answer
            self._failed(None)
            log.error("A reranker failed", action="question.not_reranked", exc_info=error)
            return list(passages), [_warning(f"{self.label} failed; see web.log.")]
        self._succeeded()
        ranked = [replace(passage, rerank_score=scores[text]) for passage, text in zip(head, texts, strict=True)]
        return [*sorted(ranked, key=lambda passage: -scores[text_of(passage)]), *tail], []

    def _resting(self) -> str:
        """Return why the reranker is not called now, or "". After a pause one question tries it, others skip it."""
        with self._lock:
            left = self._rests_until - time.monotonic()
            if left <= 0 and self._failures >= FAILURES:
                self._rests_until = time.monotonic() + REST
            if left <= 0:
                return ""
            times = "once" if self._failures == 1 else f"{self._failures} times in a row"
            return f"{self.label} failed {times} and is not asked for another {max(left, 1):.0f} s."

    def _failed(self, retry_after: float | None) -> None:
        with self._lock:
            self._failures += 1
            rest = max(min(retry_after or 0.0, LONGEST_REST), REST if self._failures >= FAILURES else 0.0)
            self._rests_until = time.monotonic() + rest

    def _succeeded(self) -> None:
        with self._lock:
            self._failures, self._rests_until = 0, 0.0


def open_reranking(settings: Settings, meter: Meter = UNMETERED, claude: Claude | None = None) -> Reranking | None:
    """Open the reranker of the settings; None if it is off. SettingsError: it cannot work."""
    model, seconds = settings.reranker_model, settings.rerank_seconds
    if settings.reranker == "voyage":
        model = model or "rerank-2.5"
        return Reranking(VoyageReranker(voyage.endpoint(settings), model, seconds, meter), f"Voyage {model}")
    if settings.reranker == "local":
        directory = ROOT / Path(model).expanduser()
        return Reranking(LocalReranker(directory, seconds, threads=2), f"The local reranker {directory.name}")
    if settings.reranker == "claude" and claude:
        model = model or "claude-haiku-5-5"
        return Reranking(ClaudeReranker(claude, model, seconds), f"Claude ({model})")
    return None


def text_of(passage: Passage) -> str:
    """The text that a reranker reads: title and headings in one line, then the content."""
    names = dict.fromkeys(name for name in (passage.title, *passage.heading) if name)
    return f"{' › '.join(names)}\n{passage.content}" if names else passage.content


def _warning(reason: str) -> str:
    return f"The passages were not reranked: {reason}"
