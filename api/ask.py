"""embed (cached) → retrieve → rerank → answer → verify: what happens to one question."""

import contextlib
import functools
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from psycopg_pool import ConnectionPool

from api import citations, extractive, history, passages
from api.citations import Draft, Statement
from api.filters import Filters
from api.history import Turn
from api.reranking import CANDIDATES, Reranking, text_of
from api.retrieval import retrieve
from shared import generations
from shared.cache import QuestionCache
from shared.db import Connection
from shared.embedding import UNMETERED, Embedder, estimate_tokens
from shared.errors import AskfolderError
from shared.generations import Generation
from shared.log import log
from shared.models import Answer, Citation, Passage, Sentence, Step
from shared.settings import Settings
from shared.usage import BudgetError, Meter, Tokens

SPARE = 20  # passages beyond those that are asked for, for the place of repetitions
EVERYTHING = Filters()
JUDGE_SECONDS = 4.0  # a second opinion that takes longer is none
REWRITE_SECONDS = 4.0  # as long as a follow-up question is waited for
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
    """Passages, best first; milliseconds by stage; what went less well, a sentence each. `question`: as it was searched for."""

    question: str
    passages: list[Passage] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)


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
    found, started = Found(question), time.perf_counter()
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
    asker: Asker, question: str, top_k: int = PASSAGES, filters: Filters = EVERYTHING, rerank: bool = True,
    strict: bool | None = None, turns: Sequence[Turn] = (), deep: bool = False,
) -> tuple[Answer, Found]:  # fmt: skip
    """An answer in which every citation stands in the stored text. Raises TransientError when the model does not answer in time."""
    found, *_, answer = answering(asker, question, top_k, filters, rerank, strict, turns, deep, whole=True)
    assert isinstance(found, Found)
    assert isinstance(answer, Answer)
    return answer, found


def answering(
    asker: Asker, question: str, top_k: int = PASSAGES, filters: Filters = EVERYTHING, rerank: bool = True,
    strict: bool | None = None, turns: Sequence[Turn] = (), deep: bool = False, whole: bool = False,
) -> Generator[Found | Step | Citation | Sentence | Answer | None]:  # fmt: skip
    """What is found, then each sentence as soon as it is checked, its new citations before it, last the answer; None: it goes on.

    Without an answer at the end there is none, whatever was given before. `strict`: nothing without support is ever given; None:
    as it is set. `turns`: what was asked and answered before. `deep`: the model may search on by itself, each time a Step, whose
    passages are added to what was found. `whole`: as in api/claude.py. Closing the generator ends the model's call. Raises as `ask` does.
    """
    settings = asker.settings
    deadline = time.monotonic() + settings.ask_seconds
    begun = time.perf_counter()
    question, took = _standalone(asker, question, turns), _since(begun)
    found = search(asker, question, top_k, filters=filters, rerank=rerank, neighbours=passages.BUDGET)
    found.timings |= {"rewrite_ms": took} if turns else {}
    yield found

    def look(query: str) -> list[Passage]:
        more = search(asker, query, min(top_k, PASSAGES), filters=filters, rerank=rerank, neighbours=passages.BUDGET)
        found.warnings += [warning for warning in more.warnings if warning not in found.warnings]
        return more.passages

    started, checking = time.perf_counter(), 0.0
    usage: dict[str, int] = {}
    broke: list[str] = []
    strict = settings.strict == "on" if strict is None else strict
    verification = citations.Verification(found.passages, strict, question, _judge(asker, usage, deadline))
    with contextlib.closing(
        _draft(asker, question, found, usage, deadline, whole, look if deep else None, broke)
    ) as draft:
        for part in draft:
            if part is None or isinstance(part, Step):
                found.steps += [part] if part else []
                yield part
                continue
            begun = time.perf_counter()
            if isinstance(part, Statement):
                with asker.pool.connection() as connection:
                    standing = citations.standing(connection, part.claims, found.passages)
                shown = list(verification.check(part, standing))
            else:
                shown = list(verification.finish(part))
            checking += time.perf_counter() - begun
            yield from shown
    found.timings["answer_ms"] = round(_since(started) - checking * 1000, 1)
    found.timings["verify_ms"] = round(checking * 1000, 1)
    answerer = "claude" if settings.answers_with_claude() and not broke else "extractive"
    yield verification.answer(answerer, usage)


def _draft(
    asker: Asker, question: str, found: Found, usage: dict[str, int], deadline: float, whole: bool,
    look: Callable[[str], list[Passage]] | None, broke: list[str],
) -> Generator[Statement | Step | Draft | None]:  # fmt: skip
    """Statements, then a Draft with the rest; None: nothing new for a while. `look`: finds what a model searches for by itself; None: it may
    not. `broke`: gets why no model was asked, beyond the cap."""
    settings = asker.settings
    if found.passages and settings.answers_with_claude() and settings.anthropic_api_key:
        from api import claude  # the SDK takes two seconds to import: only who uses it waits

        seconds = deadline - time.monotonic()
        most = Tokens(
            estimate_tokens("\n".join([claude.SYSTEM, question, *map(text_of, found.passages)])), claude.MAX_TOKENS
        )
        try:
            if look:
                yield from claude.explore(
                    question, found.passages, look, usage, api_key=settings.anthropic_api_key.get_secret_value(),
                    model=settings.anthropic_model, base_url=settings.anthropic_base_url, seconds=seconds,
                    call=functools.partial(asker.meter.call, "answers", settings.anthropic_model),
                )  # fmt: skip
                return
            with asker.meter.call("answers", settings.anthropic_model, most, seconds) as call:
                yield from claude.answer(
                    question, found.passages, usage, api_key=settings.anthropic_api_key.get_secret_value(),
                    model=settings.anthropic_model, base_url=settings.anthropic_base_url, seconds=seconds, whole=whole, call=call,
                )  # fmt: skip
            return
        except BudgetError as error:
            broke.append(f"Quoted from the documents, without a model: {error}")
    draft = extractive.extract(question, found.passages, asker.local)
    yield from draft.statements
    yield replace(draft, statements=(), warnings=(*broke, *draft.warnings))


def _judge(asker: Asker, usage: dict[str, int], deadline: float) -> citations.Judge | None:
    """A small model's second opinion, where one is set up, and as long as the day's cap allows it."""
    settings = asker.settings
    if not (settings.check_model and settings.answers_with_claude() and settings.anthropic_api_key):
        return None
    from api import claude

    key = settings.anthropic_api_key.get_secret_value()

    def judge(sentence: str, quotes: Sequence[str]) -> bool | None:
        seconds = min(JUDGE_SECONDS, deadline - time.monotonic())
        most = Tokens(estimate_tokens("\n".join([claude.JUDGE, sentence, *quotes])), claude.JUDGE_TOKENS)
        with (
            contextlib.suppress(BudgetError),
            asker.meter.call("checking", settings.check_model, most, seconds) as call,
        ):
            return claude.judge(
                sentence, quotes, usage, api_key=key, model=settings.check_model, base_url=settings.anthropic_base_url,
                seconds=seconds, call=call,
            )  # fmt: skip
        return None

    return judge


def _standalone(asker: Asker, question: str, turns: Sequence[Turn]) -> str:
    """The question with what those before it say of it: by a small model where there is one, else put after them."""
    settings = asker.settings
    if not turns or history.stands_alone(question, 4):
        return question
    if not (settings.answers_with_claude() and settings.anthropic_api_key):
        return history.joined(question, turns)
    model = settings.rewrite_model or (settings.anthropic_model if settings.anthropic_base_url else history.SMALL_MODEL)
    scope, asked = f"alone:{model}", history.asked(question, turns)
    if known := asker.cache.get_text(scope, asked):
        return known
    most = Tokens(estimate_tokens(history.SYSTEM + asked), history.MAX_TOKENS)
    said = None
    with contextlib.suppress(BudgetError), asker.meter.call("rewriting", model, most, REWRITE_SECONDS) as call:
        said = history.rewritten(
            question, turns, api_key=settings.anthropic_api_key.get_secret_value(), model=model,
            base_url=settings.anthropic_base_url, seconds=REWRITE_SECONDS, call=call,
        )  # fmt: skip
    if said is None:
        return history.joined(question, turns)
    asker.cache.put_text(scope, asked, said)
    return said


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
