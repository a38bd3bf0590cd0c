"""Routes of the page, of asking and of searching."""

import contextlib
import itertools
import json
from collections.abc import Generator, Iterable, Iterator
from dataclasses import asdict

from flask import Blueprint, Response, jsonify, redirect, render_template, request, url_for

from api.access import COOKIE
from api.ask import answer, search
from api.bodies import AskBody, SearchBody, read_body
from api.problems import InvalidError, describe_error
from api.question_log import Asked
from api.resources import Resources, resources
from api.retrieval.filters import Filters, read_filters, refuse_unknown
from api.retrieval.query import Query
from shared.models import Citation, Event, Finished, Passage, SearchResult, Sentence, Step, Turn, Waiting
from shared.providers import privacy

EVENTS = "text/event-stream"

bp = Blueprint("ask", __name__)


@bp.get("/")
def page() -> Response | str:
    if "key" in request.args:  # the link that `up` prints: the key goes into a cookie and out of the address
        opened = redirect(url_for("ask.page"), 303)
        opened.set_cookie(COOKIE, request.args["key"], max_age=400 * 86_400, httponly=True, samesite="Strict")
        return opened  # type: ignore[return-value]
    return render_template("ask.html", deep=resources().claude is not None, **privacy.describe(resources().settings))


@bp.post("/search")
def post_search() -> Response:
    body, settings = read_body(SearchBody), resources().settings
    weight = settings.cosine_weight if body.weight is None else body.weight
    query = Query(body.query, body.top_k, body.mode, _filters(body), _rerank(body), weight, body.neighbours)
    found = search(resources(), query)
    return jsonify(results=_passages(found.passages), timings=found.timings, warnings=found.warnings)


@bp.post("/ask")
def post_ask() -> Response:
    body, r = read_body(AskBody), resources()
    if body.mode == "deep" and r.claude is None:
        detail = "Mode deep needs Claude: set ANTHROPIC_API_KEY, or leave mode out."
        raise InvalidError(409, "No model", detail)
    query = Query(
        body.question,
        body.top_k,
        filters=_filters(body),
        rerank=_rerank(body),
        weight=r.settings.cosine_weight,
        strict=r.settings.strict == "on" if body.strict is None else body.strict,
        turns=tuple(Turn(turn.question, turn.answer) for turn in body.history),
        deep=body.mode == "deep",
    )
    if request.accept_mimetypes.best_match(("application/json", EVENTS)) != EVENTS:
        finished = next(event for event in answer(r, query, buffered=True) if isinstance(event, Finished))
        return jsonify(_finish(r, body, finished) | {"passages": _passages(finished.found.passages)})
    events = answer(r, query)
    first = next(events)  # an error until here is answered with its own status
    response = Response(_stream(r, body, first, events), mimetype=EVENTS)
    response.headers["X-Accel-Buffering"] = "no"  # nginx would hold sentences back
    return response


def _stream(r: Resources, body: AskBody, first: Event, events: Generator[Event]) -> Iterator[str]:
    """Server-sent events (docs/answers.md). A stream that ends without `done` has no answer."""
    with contextlib.closing(events):  # ends the model's call
        try:
            for event in itertools.chain([first], events):
                yield _server_sent(r, body, event)
        except Exception as error:
            status, title, detail, after = describe_error(error)
            yield _event("error", {"status": status, "title": title, "detail": detail, "retry_after": after})


def _server_sent(r: Resources, body: AskBody, event: Event) -> str:
    match event:
        case Waiting():
            return ": \n\n"  # a comment: sending it shows if the client has left
        case SearchResult():
            data = {"question": event.question, "passages": _passages(event.passages)}
            return _event("passages", data | {"timings": event.timings, "warnings": event.warnings})
        case Step():
            passages = _passages(event.passages)
            return _event("step", {"number": event.number, "query": event.query, "passages": passages})
        case Citation():
            return _event("citation", event)
        case Sentence():
            return _event("delta", event)
        case Finished():
            return _event("done", _finish(r, body, event))


def _event(name: str, data: object) -> str:
    return f"event: {name}\ndata: {json.dumps(data, default=asdict)}\n\n"


def _finish(r: Resources, body: AskBody, finished: Finished) -> dict[str, object]:
    """Log a question, and describe its answer."""
    found, fields = finished.found, asdict(finished.answer)
    model = r.settings.anthropic_model if finished.answer.answerer == "claude" else None
    return {
        "question": found.question,
        "question_id": r.questions.add(Asked(finished.answer, found, body.collection, model)) if body.log else None,
        "model": model,
        "answer": fields.pop("text"),
        **fields,
        "timings": found.timings,
        "warnings": [*found.warnings, *finished.answer.warnings],
        "steps": [{"number": step.number, "query": step.query, "found": len(step.passages)} for step in found.steps],
    }


def _passages(passages: Iterable[Passage]) -> list[dict[str, object]]:
    scores = {"cosine", "bm25"}
    return [{name: value for name, value in asdict(p).items() if name not in scores} for p in passages]


def _rerank(body: SearchBody | AskBody) -> bool:
    if body.rerank and resources().reranking is None:
        detail = "No reranker is set up: set ASKFOLDER_RERANKER (docs/retrieval.md), or leave rerank out."
        raise InvalidError(409, "No reranker", detail)
    return body.rerank is not False


def _filters(body: SearchBody | AskBody) -> Filters:
    filters = read_filters(collection=body.collection, **body.filters.model_dump())
    if filters.collection is not None:
        with resources().pool.connection() as connection:
            refuse_unknown(connection, filters)
    return filters
