"""embed (cached) → retrieve → answer → verify: what happens to one question."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from psycopg_pool import ConnectionPool

from api import citations, extractive
from api.filters import Filters
from api.retrieval import retrieve
from shared import generations
from shared.cache import QuestionCache
from shared.db import Connection
from shared.embedding import Embedder
from shared.errors import AskfolderError
from shared.generations import Generation
from shared.log import log
from shared.models import Answer, Passage
from shared.settings import Settings

PASSAGES = 8  # what an answer is made from, unless the question says otherwise


@dataclass(frozen=True, slots=True)
class Asker:
    """What answering needs. `embedder_of`: the embedder of a generation; `local`: sentences → vectors of the built-in model."""

    settings: Settings
    pool: ConnectionPool[Connection]
    cache: QuestionCache
    embedder_of: Callable[[Generation], Embedder]
    local: Callable[[Sequence[str]], np.ndarray]


@dataclass(slots=True)
class Found:
    """Passages, best first; milliseconds by stage; what went less well, a sentence each."""

    passages: list[Passage] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def search(asker: Asker, question: str, top_k: int, mode: str = "hybrid", filters: Filters | None = None) -> Found:
    """Passages for a question. When it cannot be embedded, words alone decide, and a warning says so."""
    found, started = Found(), time.perf_counter()
    with asker.pool.connection() as connection:
        generation = generations.live(connection)
    if generation is None:
        return found
    vector = _question_vector(asker, generation, question, found) if mode != "lexical" else None
    found.timings["embed_ms"] = _since(started)
    started = time.perf_counter()
    with asker.pool.connection() as connection:
        found.passages = retrieve(connection, generation, question, vector, top_k, mode, filters or Filters())
    found.timings["retrieve_ms"] = _since(started)
    return found


def ask(asker: Asker, question: str, top_k: int = PASSAGES, filters: Filters | None = None) -> tuple[Answer, Found]:
    """An answer in which every citation stands in the stored text. Raises TransientError when the model does not answer in time."""
    settings = asker.settings
    found = search(asker, question, top_k * 2, filters=filters)
    found.passages = _distinct(found.passages)[:top_k]
    started = time.perf_counter()
    with_claude = settings.answers_with_claude()
    usage: dict[str, int] = {}
    if not found.passages:
        draft = extractive.extract(question, [], asker.local)
    elif with_claude and settings.anthropic_api_key:
        from api import claude  # the SDK takes two seconds to import: only who uses it waits

        draft, usage = claude.answer(
            question, found.passages, api_key=settings.anthropic_api_key.get_secret_value(), model=settings.anthropic_model,
            base_url=settings.anthropic_base_url, seconds=settings.ask_seconds,
        )  # fmt: skip
    else:
        draft = extractive.extract(question, found.passages, asker.local)
    found.timings["answer_ms"] = _since(started)
    started = time.perf_counter()
    with asker.pool.connection() as connection:
        answer = citations.verify(connection, draft, found.passages, "claude" if with_claude else "extractive", usage)
    found.timings["verify_ms"] = _since(started)
    return answer, found


def _question_vector(asker: Asker, generation: Generation, question: str, found: Found) -> np.ndarray | None:
    scope = f"{generation.embedder}:{generation.model}:{generation.dimensions}"
    vector = asker.cache.get(scope, question)
    if vector is None or vector.shape != (generation.dimensions,):
        try:
            vector = asker.embedder_of(generation).embed_question(question)
        except AskfolderError as error:
            log.warning(str(error), action="question.not_embedded")
            found.warnings.append(f"Only words were compared, not meaning: {error}")
            return None
        asker.cache.put(scope, question, vector)
    return vector


def _distinct(passages: list[Passage]) -> list[Passage]:
    """Without repeated contents: copies of a file would fill the list."""
    return list({passage.content: passage for passage in reversed(passages)}.values())[::-1]


def _since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 1)
