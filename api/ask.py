"""embed (cached) → retrieve → rerank → answer → verify: what happens to one question."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from psycopg_pool import ConnectionPool

from api import citations, extractive, passages
from api.filters import Filters
from api.reranking import CANDIDATES, Reranking, text_of
from api.retrieval import retrieve
from shared import generations
from shared.cache import QuestionCache
from shared.db import Connection
from shared.embedding import UNMETERED, Embedder, estimate_tokens
from shared.errors import AskfolderError
from shared.generations import Generation
from shared.log import log
from shared.models import Answer, Passage
from shared.settings import Settings
from shared.usage import BudgetError, Meter, Tokens

SPARE = 20  # passages beyond those that are asked for, for the place of repetitions
EVERYTHING = Filters()
PASSAGES = 8  # what an answer is made from, unless the question says otherwise


@dataclass(frozen=True, slots=True)
class Asker:
    """What answering needs. `embedder_of`: the embedder of a generation; `local`: sentences → vectors of the built-in model;
    `reranking`: None when none is set up; `meter`: what counts the cost.
    """

    settings: Settings
    pool: ConnectionPool[Connection]
    cache: QuestionCache
    embedder_of: Callable[[Generation], Embedder]
    local: Callable[[Sequence[str]], np.ndarray]
    reranking: Reranking | None = None
    meter: Meter = UNMETERED


@dataclass(slots=True)
class Found:
    """Passages, best first; milliseconds by stage; what went less well, a sentence each."""

    passages: list[Passage] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def search(
    asker: Asker,
    question: str,
    top_k: int,
    mode: str = "hybrid",
    filters: Filters = EVERYTHING,
    rerank: bool = True,
    weight: float | None = None,
    neighbours: int = 0,
) -> Found:
    """Passages for a question. When it cannot be embedded, words alone decide, and a warning says so.

    `rerank`: if a reranker is set up; when it fails, the order stays, and a warning says so. `weight`: of meaning against words, 0 to 1.
    `neighbours`: characters that a passage may have together with its neighbours; 0: none.
    """
    reranking = asker.reranking if rerank else None
    found, started = Found(), time.perf_counter()
    with asker.pool.connection() as connection:
        generation = generations.live(connection)
    if generation is None:
        return found
    vector = _question_vector(asker, generation, question, filters, found) if mode != "lexical" else None
    found.timings["embed_ms"] = _since(started)
    started = time.perf_counter()
    with asker.pool.connection() as connection:
        depth = max(top_k + SPARE, CANDIDATES if reranking else 0)
        found.passages = retrieve(
            connection, generation, question, vector, depth, mode, filters, asker.settings.cosine_weight if weight is None else weight
        )  # fmt: skip
    found.timings["retrieve_ms"] = _since(started)
    if reranking:
        started = time.perf_counter()
        found.passages, warnings = reranking.order(question, found.passages)
        found.warnings += warnings
        found.timings["rerank_ms"] = _since(started)
    # A reranker has weighed each passage by itself: then only repetitions go.
    found.passages = passages.spread(found.passages, top_k, 1.0 if reranking else passages.SHARE)
    if neighbours:
        with asker.pool.connection() as connection:
            found.passages = passages.whole(connection, found.passages, neighbours)
    return found


def ask(
    asker: Asker, question: str, top_k: int = PASSAGES, filters: Filters = EVERYTHING, rerank: bool = True
) -> tuple[Answer, Found]:
    """An answer in which every citation stands in the stored text. Raises TransientError when the model does not answer in time."""
    settings = asker.settings
    found = search(asker, question, top_k, filters=filters, rerank=rerank, neighbours=passages.BUDGET)
    started = time.perf_counter()
    with_claude = settings.answers_with_claude()
    usage: dict[str, int] = {}
    draft: citations.Draft | None = None
    if not found.passages:
        draft = extractive.extract(question, [], asker.local)
    elif with_claude and settings.anthropic_api_key:
        from api import claude  # the SDK takes two seconds to import: only who uses it waits

        most = Tokens(
            estimate_tokens("\n".join([claude.SYSTEM, question, *map(text_of, found.passages)])), claude.MAX_TOKENS
        )
        try:
            with asker.meter.call("answers", settings.anthropic_model, most, settings.ask_seconds) as call:
                draft, usage = claude.answer(
                    question, found.passages, api_key=settings.anthropic_api_key.get_secret_value(), model=settings.anthropic_model,
                    base_url=settings.anthropic_base_url, seconds=settings.ask_seconds, call=call,
                )  # fmt: skip
        except BudgetError as error:
            found.warnings.append(f"Quoted from the documents, without a model: {error}")
            with_claude = False
    if draft is None:
        draft = extractive.extract(question, found.passages, asker.local)
    found.timings["answer_ms"] = _since(started)
    started = time.perf_counter()
    with asker.pool.connection() as connection:
        answer = citations.verify(connection, draft, found.passages, "claude" if with_claude else "extractive", usage)
    found.timings["verify_ms"] = _since(started)
    return answer, found


def _question_vector(
    asker: Asker, generation: Generation, question: str, filters: Filters, found: Found
) -> np.ndarray | None:
    scope = cache_scope(generation, filters)
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


def cache_scope(generation: Generation, filters: Filters) -> str:
    """What a question's embedding is kept for: an index, and what is searched in it.

    The collection is part of it: how fast an answer comes must not tell what others asked elsewhere.
    """
    return (
        f"{generation.id}:{generation.embedder}:{generation.model}:{generation.dimensions}:{filters.collection or ''}"
    )


def _since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 1)
