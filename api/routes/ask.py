"""Routes of the page, of asking and of searching."""

import contextlib
import functools
import json
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict

from flask import (
    Response,
    jsonify,
    redirect,
    render_template,
    request,
    url_for,
)

from api.access import COOKIE
from api.answering.follow_ups import Turn
from api.ask import answering, ask, search
from api.bodies import AskBody, SearchBody, read_body
from api.problems import InvalidError, describe_error
from api.question_log import Asked, QuestionLog
from api.resources import questions_writer, resources
from api.retrieval.filters import Filters, read_filters, refuse_unknown
from shared.models import Answer, Citation, Event, Passage, SearchResult, Sentence, Step, Waiting
from shared.providers import privacy
from shared.settings import Settings

EVENTS = "text/event-stream"


def page() -> Response | str:
    if "key" in request.args:  # the link that `up` prints: the key goes into a cookie and out of the address
        opened = redirect(url_for("page"), 303)
        opened.set_cookie(COOKIE, request.args["key"], max_age=400 * 86_400, httponly=True, samesite="Strict")
        return opened  # type: ignore[return-value]
    settings = resources().settings
    return render_template("ask.html", deep=resources().claude is not None, **privacy.describe(settings))


def post_ask() -> Response:
    body = read_body(AskBody)
    settings, kept = resources().settings, questions_writer()
    turns = [Turn(turn.question, turn.answer) for turn in body.history]
    if body.mode == "deep" and resources().claude is None:
        raise InvalidError(
            409, "No model", "In mode deep Claude searches by itself: set ANTHROPIC_API_KEY, or leave mode out."
        )
    options = (
        body.question,
        body.top_k,
        _filters(body),
        _rerank(body.rerank),
        body.strict,
        turns,
        body.mode == "deep",
    )
    if request.accept_mimetypes.best_match(("application/json", EVENTS)) != EVENTS:
        answer, found = ask(resources(), *options)
        return jsonify(
            _answer(answer, found, body, settings, kept) | {"passages": [_passage(p) for p in found.passages]}
        )
    parts = answering(resources(), *options)
    first = next(parts)  # what cannot be searched for is said with its status
    assert isinstance(first, SearchResult)
    done = functools.partial(
        _answer, body=body, settings=settings, kept=kept
    )  # there is no app any more when it is called
    response = Response(_streamed(first, parts, done), mimetype=EVENTS)
    response.headers["X-Accel-Buffering"] = "no"  # nginx would keep sentences back
    return response


def _answer(
    answer: Answer, found: SearchResult, body: AskBody, settings: Settings, kept: QuestionLog
) -> dict[str, object]:
    """What is said of an answer that came to its end; it is logged here."""
    model = settings.anthropic_model if answer.answerer == "claude" else None
    asked = Asked(found.question, answer, found.passages, found.timings, body.collection, model)
    return {
        "question": found.question,
        "question_id": kept.add(asked) if body.log else None,
        "model": model,
        "answer": answer.text,
        "sentences": answer.sentences,
        "citations": answer.citations,
        "verdict": answer.verdict,
        "dropped": answer.dropped,
        "removed": answer.removed,
        "answerer": answer.answerer,
        "usage": answer.usage,
        "timings": found.timings,
        "warnings": [*found.warnings, *answer.warnings],
        "steps": [{"number": step.number, "query": step.query, "found": len(step.passages)} for step in found.steps],
    }


def _streamed(
    found: SearchResult,
    parts: Generator[Event],
    done: Callable[[Answer, SearchResult], dict[str, object]],
) -> Iterator[str]:
    """The answer as server-sent events (docs/answers.md). One that ends without `done` is none."""
    with contextlib.closing(parts):  # which ends the model's call
        first = {
            "question": found.question,
            "passages": [_passage(p) for p in found.passages],
            "timings": found.timings,
            "warnings": found.warnings,
        }
        yield _event("passages", first)
        try:
            for part in parts:
                if isinstance(part, Waiting):
                    yield ": \n\n"  # and a client that left is noticed
                elif isinstance(part, Step):
                    step = {
                        "number": part.number,
                        "query": part.query,
                        "passages": [_passage(p) for p in part.passages],
                    }
                    yield _event("step", step)
                elif isinstance(part, Citation):
                    yield _event("citation", asdict(part))
                elif isinstance(part, Sentence):
                    yield _event("delta", asdict(part))
                elif isinstance(part, Answer):
                    whole = done(part, found)
                    sentences, cited = map(asdict, part.sentences), map(asdict, part.citations)
                    yield _event("done", whole | {"sentences": list(sentences), "citations": list(cited)})
        except Exception as error:
            status, title, detail, after = describe_error(error)
            yield _event("error", {"status": status, "title": title, "detail": detail, "retry_after": after})


def _event(name: str, data: object) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def post_search() -> Response:
    body = read_body(SearchBody)
    found = search(
        resources(),
        body.query,
        body.top_k,
        body.mode,
        _filters(body),
        _rerank(body.rerank),
        body.weight,
        body.neighbours,
    )
    return jsonify(results=[_passage(p) for p in found.passages], timings=found.timings, warnings=found.warnings)


def _rerank(wanted: bool | None) -> bool:
    """Whether to rerank; None: as it is set up."""
    if wanted and resources().reranking is None:
        raise InvalidError(
            409,
            "No reranker",
            "No reranker is set up: set ASKFOLDER_RERANKER (docs/retrieval.md), or leave rerank out.",
        )
    return wanted is not False


def _filters(body: SearchBody | AskBody) -> Filters:
    filters = read_filters(collection=body.collection, **body.filters.model_dump())
    if filters.collection is not None:
        with resources().pool.connection() as connection:
            refuse_unknown(connection, filters)
    return filters


def _passage(passage: Passage) -> dict[str, object]:
    names = (
        "source",
        "title",
        "content",
        "score",
        "rerank_score",
        "page",
        "heading",
        "char_start",
        "char_end",
        "document_id",
        "chunk_id",
    )
    return {name: getattr(passage, name) for name in names}
