"""embed (cached) → retrieve → rerank → answer → verify: the path of one question."""

import contextlib
import time
from collections.abc import Generator
from dataclasses import replace

import numpy as np

from api.answering.draft import draft
from api.answering.follow_ups import stand_alone
from api.resources import Resources
from api.retrieval.filters import Filters
from api.retrieval.passages import BUDGET, SHARE, diversify, with_neighbours
from api.retrieval.query import PASSAGES, Query
from api.retrieval.reranking import CANDIDATES
from api.retrieval.retrieve import retrieve
from api.verification import citations
from api.verification.citations import Draft, Statement, Verification
from api.verification.second_opinion import SecondOpinion
from shared.errors import AskfolderError
from shared.ledger import generations
from shared.ledger.generations import Generation
from shared.log import log
from shared.models import Citation, Event, Finished, SearchResult, Sentence, Step, Waiting
from shared.providers.claude import Deadline

SPARE = 20  # passages beyond `top_k`, to replace near-copies


def search(r: Resources, query: Query) -> SearchResult:
    """Find passages. A warning says so if the question could not be embedded, or the passages not reranked."""
    watch = Stopwatch()
    with r.pool.connection() as connection:
        generation = generations.live(connection)
    if generation is None:
        return SearchResult(query.text)
    vector, warnings = embed(r, query, generation) if query.mode != "lexical" else (None, [])
    watch.lap("embed")
    reranking = r.reranking if query.rerank else None
    depth = max(query.top_k + SPARE, CANDIDATES if reranking else 0)
    with r.pool.connection() as connection:
        passages = retrieve(connection, generation, replace(query, top_k=depth), vector)
    watch.lap("retrieve")
    if reranking:
        passages, problems = reranking.order(query.text, passages)
        warnings += problems
        watch.lap("rerank")
    # A reranker has rated each passage by itself, so one document may fill the list; only near-copies go.
    passages = diversify(passages, query.top_k, 1.0 if reranking else SHARE)
    if query.neighbours:
        with r.pool.connection() as connection:
            passages = with_neighbours(connection, passages, query.neighbours)
    return SearchResult(query.text, tuple(passages), watch.timings(), tuple(warnings))


def answer(r: Resources, query: Query, buffered: bool = False) -> Generator[Event]:
    """Yield the search result, each sentence as soon as it is checked, after its new citations, and at last Finished.

    If Finished does not come, there is no answer, whatever came before. `buffered`: no sentence comes before the model
    has finished, so that an answer that breaks off can be tried again. Closing the generator ends the model's call.
    TransientError: the model did not answer in time. Every citation's quote is in the stored text.
    """
    deadline = Deadline.after(r.settings.ask_seconds)
    watch = Stopwatch()
    query = replace(query, text=stand_alone(r, query.text, query.turns), neighbours=BUDGET)
    watch.lap("rewrite")
    found = search(r, query)
    if query.turns:
        found = replace(found, timings={**found.timings, **watch.timings()})
    yield found

    def look(text: str) -> SearchResult:
        return search(r, replace(query, text=text, top_k=min(query.top_k, PASSAGES)))

    opinion = SecondOpinion.of(r, deadline)
    verification = Verification(found.passages, query.strict, query.text, opinion)
    rest, watch = Draft(), Stopwatch()
    parts = draft(r, query.text, found, deadline, buffered, look if query.deep else None)
    with contextlib.closing(parts):
        for part in parts:
            watch.lap("answer")
            if isinstance(part, Waiting):
                yield part
            elif isinstance(part, Step):
                found = found.extended(part)
                verification.passages = found.passages
                yield part
            else:
                rest = part if isinstance(part, Draft) else rest
                checked = verify(r, verification, part)
                watch.lap("verify")
                yield from checked
    watch.lap("answer")
    usage = {**rest.usage, **(opinion.usage if opinion else {})}
    found = replace(found, timings={**found.timings, **watch.timings()})
    yield Finished(verification.answer(rest.answerer, usage), found)


def embed(r: Resources, query: Query, generation: Generation) -> tuple[np.ndarray | None, list[str]]:
    """The question's embedding, from the cache if it is there; or None and a warning."""
    scope = cache_scope(generation, query.filters)
    vector = r.cache.get(scope, query.text)
    if vector is None or vector.shape != (generation.dimensions,):
        try:
            vector = r.embedder_of(generation).embed_question(query.text)
        except AskfolderError as error:
            log.warning(str(error), action="question.not_embedded")
            return None, [f"Only words were compared, not meaning: {error}"]
        r.cache.put(scope, query.text, vector)
    return vector, []


def verify(r: Resources, verification: Verification, part: Statement | Draft) -> list[Citation | Sentence]:
    """Check the next statement, or the end of a draft. The sentences to show, each after its new citations."""
    if isinstance(part, Draft):
        return list(verification.finish(part))
    with r.pool.connection() as connection:
        standing = citations.resolve(connection, part.claims, verification.passages)
    return list(verification.check(part, standing))


def cache_scope(generation: Generation, filters: Filters) -> str:
    """The cache's scope of question embeddings: the index, and the collection that is searched.

    Without the collection, the speed of an answer would show what others asked elsewhere.
    """
    model = f"{generation.embedder}:{generation.model}:{generation.dimensions}"
    return f"{generation.id}:{model}:{filters.collection or ''}"


class Stopwatch:
    """The time of each stage, over all its laps."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._started = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Add the time since the last lap to a stage."""
        now = time.perf_counter()
        self._seconds[stage] = self._seconds.get(stage, 0.0) + now - self._started
        self._started = now

    def timings(self) -> dict[str, float]:
        """Milliseconds by stage."""
        return {f"{stage}_ms": round(seconds * 1000, 1) for stage, seconds in self._seconds.items()}
