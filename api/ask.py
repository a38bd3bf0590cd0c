"""embed (cached) → retrieve → rerank → answer → verify: what happens to one question."""

import contextlib
import time
from collections.abc import Generator, Sequence

import numpy as np

from api.answering.draft import draft
from api.answering.follow_ups import Turn, stand_alone
from api.resources import Resources
from api.retrieval import passages
from api.retrieval.filters import Filters
from api.retrieval.reranking import CANDIDATES
from api.retrieval.retrieve import retrieve
from api.verification import citations
from api.verification.citations import Statement
from api.verification.second_opinion import SecondOpinion
from shared.errors import AskfolderError
from shared.ledger import generations
from shared.ledger.generations import Generation
from shared.log import log
from shared.models import Answer, Event, SearchResult, Step, Waiting
from shared.providers.claude import Deadline

SPARE = 20  # passages beyond those that are asked for, for the place of repetitions
EVERYTHING = Filters()
PASSAGES = 8  # what an answer is made from, unless the question says otherwise


def search(
    asker: Resources,
    question: str,
    top_k: int,
    mode: str = "hybrid",
    filters: Filters = EVERYTHING,
    rerank: bool = True,
    weight: float | None = None,
    neighbours: int = 0,
) -> SearchResult:
    """Passages for a question. When it cannot be embedded, words alone decide, and a warning says so.

    `rerank`: if a reranker is set up; when it fails, the order stays, and a warning says so. `weight`: of meaning against words, 0 to 1.
    `neighbours`: characters that a passage may have together with its neighbours; 0: none.
    """
    reranking = asker.reranking if rerank else None
    found, started = SearchResult(question), time.perf_counter()
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
            connection,
            generation,
            question,
            vector,
            depth,
            mode,
            filters,
            asker.settings.cosine_weight if weight is None else weight,
        )
    found.timings["retrieve_ms"] = _since(started)
    if reranking:
        started = time.perf_counter()
        found.passages, warnings = reranking.order(question, found.passages)
        found.warnings += warnings
        found.timings["rerank_ms"] = _since(started)
    # A reranker has weighed each passage by itself: then only repetitions go.
    found.passages = passages.diversify(found.passages, top_k, 1.0 if reranking else passages.SHARE)
    if neighbours:
        with asker.pool.connection() as connection:
            found.passages = passages.with_neighbours(connection, found.passages, neighbours)
    return found


def ask(
    asker: Resources,
    question: str,
    top_k: int = PASSAGES,
    filters: Filters = EVERYTHING,
    rerank: bool = True,
    strict: bool | None = None,
    turns: Sequence[Turn] = (),
    deep: bool = False,
) -> tuple[Answer, SearchResult]:
    """An answer in which every citation stands in the stored text. Raises TransientError when the model does not answer in time."""
    found, *_, answer = answering(asker, question, top_k, filters, rerank, strict, turns, deep, whole=True)
    assert isinstance(found, SearchResult)
    assert isinstance(answer, Answer)
    return answer, found


def answering(
    asker: Resources,
    question: str,
    top_k: int = PASSAGES,
    filters: Filters = EVERYTHING,
    rerank: bool = True,
    strict: bool | None = None,
    turns: Sequence[Turn] = (),
    deep: bool = False,
    whole: bool = False,
) -> Generator[Event]:
    """What is found, then each sentence as soon as it is checked, its new citations before it, last the answer.

    Without an answer at the end there is none, whatever was given before. `strict`: nothing without support is ever given; None:
    as it is set. `turns`: what was asked and answered before. `deep`: the model may search on by itself, each time a Step, whose
    passages are added to what was found. `whole`: as in api/answering/claude.py. Closing the generator ends the model's call. Raises as `ask` does.
    """
    settings = asker.settings
    deadline = Deadline.after(settings.ask_seconds)
    begun = time.perf_counter()
    question, took = stand_alone(asker, question, turns), _since(begun)
    found = search(asker, question, top_k, filters=filters, rerank=rerank, neighbours=passages.BUDGET)
    found.timings |= {"rewrite_ms": took} if turns else {}
    yield found

    def look(query: str) -> SearchResult:
        return search(asker, query, min(top_k, PASSAGES), filters=filters, rerank=rerank, neighbours=passages.BUDGET)

    started, checking = time.perf_counter(), 0.0
    strict = settings.strict == "on" if strict is None else strict
    opinion = SecondOpinion.of(asker, deadline)
    verification = citations.Verification(found.passages, strict, question, opinion)
    parts = draft(asker, question, found, deadline, whole, look if deep else None)
    rest = citations.Draft()
    with contextlib.closing(parts):
        for part in parts:
            if isinstance(part, Waiting):
                yield part
                continue
            if isinstance(part, Step):
                found.steps.append(part)
                found.passages.extend(part.passages)
                found.warnings += [warning for warning in part.warnings if warning not in found.warnings]
                yield part
                continue
            begun = time.perf_counter()
            if isinstance(part, Statement):
                with asker.pool.connection() as connection:
                    standing = citations.resolve(connection, part.claims, found.passages)
                shown = list(verification.check(part, standing))
            else:
                rest, shown = part, list(verification.finish(part))
            checking += time.perf_counter() - begun
            yield from shown
    found.timings["answer_ms"] = round(_since(started) - checking * 1000, 1)
    found.timings["verify_ms"] = round(checking * 1000, 1)
    yield verification.answer(rest.answerer, {**rest.usage, **(opinion.usage if opinion else {})})


def _question_vector(
    asker: Resources, generation: Generation, question: str, filters: Filters, found: SearchResult
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
