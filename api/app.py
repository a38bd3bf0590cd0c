"""The Flask app: who may come in, what they may ask, and how errors are said."""

import contextlib
import functools
import hmac
import importlib
import json
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal, NoReturn, TypeVar
from urllib.parse import urlsplit
from uuid import UUID

import numpy as np
import psycopg
from flask import (
    Flask,
    Response,
    current_app,
    has_request_context,
    jsonify,
    redirect,
    render_template,
    request,
    url_for,
)
from psycopg_pool import PoolTimeout
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError
from werkzeug.exceptions import HTTPException

from api import questions, retrieval
from api.ask import PASSAGES, Asker, Found, answering, ask, search
from api.filters import FilterError, Filters, read_filters, refuse_unknown
from api.history import Turn
from api.questions import Asked, QuestionLog
from api.reranking import open_reranking
from shared import access, db, doctor, documents, generations, queue, sources, usage
from shared.cache import QuestionCache
from shared.embedding import Embedder
from shared.errors import AskfolderError, PermanentError, TransientError
from shared.generations import Generation
from shared.log import log
from shared.models import Answer, Citation, Passage, Sentence, Step
from shared.providers import embedder_for
from shared.settings import ROOT, Settings, load
from shared.usage import Meter

COOKIE = "askfolder_key"
OPEN = {"/healthz", "/readyz"}
EVENTS = "text/event-stream"
MAX_BODY = 256 * 1024  # bytes
LEAST_DISK = 50_000_000  # bytes: with less, PostgreSQL is about to fail
M = TypeVar("M", bound=BaseModel)
Question = Annotated[
    str,
    BeforeValidator(
        lambda value: value.replace("\0", " ").strip() if isinstance(value, str) else value
    ),  # PostgreSQL takes no NUL
    StringConstraints(min_length=1, max_length=20_000),
]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class FiltersBody(_Body):
    """What each means: api/filters.py."""

    source: str | None = None
    type: str | list[str] | None = None
    after: str | None = None
    before: str | None = None
    metadata: dict[str, Any] | None = None


class SearchBody(_Body):
    query: Question
    top_k: int = Field(10, ge=1, le=100)
    mode: Literal["hybrid", "dense", "lexical"] = "hybrid"
    weight: float | None = Field(default=None, ge=0, le=1)
    neighbours: int = Field(default=0, ge=0, le=20_000)
    rerank: bool | None = None
    collection: str | None = Field(default=None, max_length=200)
    filters: FiltersBody = FiltersBody()


class TurnBody(_Body):
    question: Question
    answer: str = Field("", max_length=100_000)


class AskBody(_Body):
    question: Question
    history: list[TurnBody] = Field([], max_length=100)
    mode: Literal["quick", "deep"] = "quick"
    top_k: int = Field(PASSAGES, ge=1, le=100)
    rerank: bool | None = None
    strict: bool | None = None
    log: bool = True
    collection: str | None = Field(default=None, max_length=200)
    filters: FiltersBody = FiltersBody()


class RatingBody(_Body):
    rating: Literal[-1, 0, 1]


class ReconcileBody(_Body):
    confirm: bool = False
    rehash: bool = False


class DoctorBody(_Body):
    repair: bool = False


class ListQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")
    limit: int = Field(100, ge=1, le=1000)
    cursor: int = Field(0, ge=0)
    state: Literal["queued", "ingesting", "ready", "failed", "quarantined", "excluded", "deleted"] | None = None
    q: str | None = Field(default=None, max_length=1000)


class QuestionsQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")
    limit: int = Field(100, ge=1, le=1000)
    cursor: int | None = Field(default=None, ge=0)
    rating: int | None = Field(default=None, ge=-1, le=1)


class UsageQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")
    days: int = Field(30, ge=1, le=3660)


def create_app(settings: Settings | None = None) -> Flask:
    settings = settings or load()
    app = Flask("api", root_path=str(ROOT / "api"))
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    app.json.sort_keys = False  # type: ignore[attr-defined]
    pool = db.pool(settings.database_url, 16, retrieval.configure)
    meter = Meter.of(settings, pool, behind=True)

    @functools.cache
    def embedder(name: str, model: str, model_path: str, dimensions: int) -> Embedder:
        return embedder_for(settings, name, model, model_path, dimensions, threads=2, meter=meter)

    def embedder_of(generation: Generation) -> Embedder:
        return embedder(generation.embedder, generation.model, generation.model_path, generation.dimensions)

    def local(sentences: Sequence[str]) -> np.ndarray:
        return embedder("local", "all-MiniLM-L6-v2-int8", "", 384).embed(sentences)

    if settings.answers_with_claude():
        importlib.import_module("api.claude")  # now, rather than at the first question
    app.extensions["askfolder"] = Asker(
        settings, pool, QuestionCache(settings.redis_url), embedder_of, local, open_reranking(settings, meter), meter
    )
    app.extensions["askfolder.questions"] = QuestionLog(pool, settings.question_log == "on")
    app.extensions["askfolder.key"] = access.key(settings)
    app.extensions["askfolder.hosts"] = allowed_hosts(settings)
    app.before_request(_let_in)
    app.after_request(_harden)
    app.register_error_handler(Exception, _problem)
    for rule, function, methods in _ROUTES:
        app.add_url_rule(rule, view_func=function, methods=methods)
    return app


# --- who may come in -------------------------------------------------------------------------------------------------


def allowed_hosts(settings: Settings) -> set[str]:
    """Names that a request may give as its host: a page of another name that points here (DNS rebinding) gets nothing."""
    hosts = {"127.0.0.1", "localhost", "::1", settings.host} | {
        name.strip() for name in settings.allowed_hosts.split(",")
    }
    return {host.lower() for host in hosts if host and host not in ("0.0.0.0", "::")}


def _let_in() -> Response | None:
    hosts: set[str] = current_app.extensions["askfolder.hosts"]
    host = urlsplit(f"//{request.headers.get('Host', '')}").hostname or ""
    if host not in hosts:
        return problem(
            400, "Foreign host", f"This server does not answer to the name {host!r}; add it to ASKFOLDER_ALLOWED_HOSTS."
        )
    origin = request.headers.get("Origin")
    if origin and origin != "null" and urlsplit(origin).netloc.lower() != request.headers["Host"].lower():
        return problem(403, "Foreign origin", f"A page of {origin} may not use this server.")
    if origin == "null":
        return problem(403, "Foreign origin", "A page without an origin may not use this server.")
    if request.path in OPEN:
        return None
    scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
    given = bearer.strip() if scheme.lower() == "bearer" else request.cookies.get(COOKIE, "")
    if request.path == "/" and "key" in request.args:
        given = request.args["key"]
    if hmac.compare_digest(given.encode("utf-8", "replace"), current_app.extensions["askfolder.key"].encode()):
        return None
    if request.path == "/" and request.accept_mimetypes.accept_html:
        return Response(render_template("locked.html"), 401, {"WWW-Authenticate": "Bearer"})
    answer = problem(
        401,
        "No key",
        "Send the header Authorization: Bearer KEY, with the key that `askfolder up` keeps in .askfolder/key.",
    )
    answer.headers["WWW-Authenticate"] = "Bearer"
    return answer


def _harden(response: Response) -> Response:
    response.headers.update(
        {
            "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
            "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
    )
    response.headers.setdefault("Cache-Control", "no-store")
    return response


# --- how errors are said (RFC 9457) ----------------------------------------------------------------------------------


def problem(status: int, title: str, detail: str, **more: object) -> Response:
    response = jsonify({"type": "about:blank", "title": title, "status": status, "detail": detail, **more})
    response.status_code = status
    response.content_type = "application/problem+json"
    return response


def _problem(error: Exception) -> Response:
    status, title, detail, retry_after = _said(error)
    response = problem(status, title, detail)
    if retry_after is not None:
        response.headers["Retry-After"] = str(retry_after)
    return response


def _said(error: Exception) -> tuple[int, str, str, int | None]:
    """Status, title, sentence, and seconds after which to try again."""
    if isinstance(error, _Invalid):
        return error.status, error.title, str(error), None
    if isinstance(error, FilterError):
        return 422, "Invalid filter", str(error), None
    if isinstance(error, HTTPException):
        code = error.code or 500
        detail = f"The request is larger than {MAX_BODY // 1024} kB." if code == 413 else error.description or ""
        return code, error.name, detail, None
    if isinstance(error, (psycopg.OperationalError, PoolTimeout)):
        log.error(f"The database is away: {error}", action="api.no_database")
        detail = "PostgreSQL does not answer; try again in a moment (/readyz tells what is missing)."
        return 503, "Database away", detail, 2
    if isinstance(error, TransientError):
        return 503, "Try again later", str(error), max(1, round(error.retry_after or 5))
    if isinstance(error, AskfolderError):
        return 502 if isinstance(error, PermanentError) else 500, "Not possible as it is set up", str(error), None
    log.error(
        "A request failed", action="api.error", path=request.path if has_request_context() else "", exc_info=error
    )
    return 500, "Error in askfolder", "Something went wrong in askfolder itself; its log (web.log) says what.", None


class _Invalid(Exception):
    def __init__(self, status: int, title: str, detail: str) -> None:
        super().__init__(detail)
        self.status, self.title = status, title


def _body(model: type[M]) -> M:
    try:
        raw: Any = request.get_json(force=True)
    except (HTTPException, RecursionError) as error:
        if isinstance(error, HTTPException) and error.code == 413:
            raise
        raise _Invalid(400, "Not JSON", f"The body is not valid JSON; send for example {_example(model)}.") from None
    return _valid(model, raw)


def _valid(model: type[M], raw: object) -> M:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        _refuse(error)


def _refuse(error: ValidationError) -> NoReturn:
    details = "; ".join(
        f"{'.'.join(map(str, e['loc'])) or 'body'}: {e['msg'][0].lower()}{e['msg'][1:]}"
        for e in error.errors(include_url=False)
    )
    raise _Invalid(422, "Invalid request", f"{details}.") from None


def _example(model: type[BaseModel]) -> str:
    return {SearchBody: '{"query": "…"}', AskBody: '{"question": "…"}', RatingBody: '{"rating": 1}'}.get(model, "{}")


# --- routes ----------------------------------------------------------------------------------------------------------


def _asker() -> Asker:
    asker: Asker = current_app.extensions["askfolder"]
    return asker


def _log() -> QuestionLog:
    kept: QuestionLog = current_app.extensions["askfolder.questions"]
    return kept


def page() -> Response | str:
    if "key" in request.args:  # the link that `up` prints: the key goes into a cookie and out of the address
        opened = redirect(url_for("page"), 303)
        opened.set_cookie(COOKIE, request.args["key"], max_age=400 * 86_400, httponly=True, samesite="Strict")
        return opened  # type: ignore[return-value]
    settings = _asker().settings
    return render_template("ask.html", deep=settings.answers_with_claude(), **access.described(settings))


def post_ask() -> Response:
    body = _body(AskBody)
    settings, kept = _asker().settings, _log()
    turns = [Turn(turn.question, turn.answer) for turn in body.history]
    if body.mode == "deep" and not settings.answers_with_claude():
        raise _Invalid(
            409, "No model", "In mode deep Claude searches by itself: set ANTHROPIC_API_KEY, or leave mode out."
        )
    options = (
        body.question, body.top_k, _filters(body), _rerank(body.rerank), body.strict, turns, body.mode == "deep",
    )  # fmt: skip
    if request.accept_mimetypes.best_match(("application/json", EVENTS)) != EVENTS:
        answer, found = ask(_asker(), *options)
        return jsonify(
            _answer(answer, found, body, settings, kept) | {"passages": [_passage(p) for p in found.passages]}
        )
    parts = answering(_asker(), *options)
    first = next(parts)  # what cannot be searched for is said with its status
    assert isinstance(first, Found)
    done = functools.partial(
        _answer, body=body, settings=settings, kept=kept
    )  # there is no app any more when it is called
    response = Response(_streamed(first, parts, done), mimetype=EVENTS)
    response.headers["X-Accel-Buffering"] = "no"  # nginx would keep sentences back
    return response


def _answer(answer: Answer, found: Found, body: AskBody, settings: Settings, kept: QuestionLog) -> dict[str, object]:
    """What is said of an answer that came to its end; it is logged here."""
    model = settings.anthropic_model if answer.answerer == "claude" else None
    asked = Asked(found.question, answer, found.passages, found.timings, body.collection, model)
    return {
        "question": found.question, "question_id": kept.add(asked) if body.log else None, "model": model,
        "answer": answer.text, "sentences": answer.sentences, "citations": answer.citations, "verdict": answer.verdict,
        "dropped": answer.dropped, "removed": answer.removed, "answerer": answer.answerer, "usage": answer.usage,
        "timings": found.timings, "warnings": [*found.warnings, *answer.warnings], "steps": [{"number": step.number, "query": step.query, "found": len(step.passages)} for step in found.steps],
    }  # fmt: skip


def _streamed(
    found: Found,
    parts: Generator[Found | Step | Citation | Sentence | Answer | None],
    done: Callable[[Answer, Found], dict[str, object]],
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
                if part is None:
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
            status, title, detail, after = _said(error)
            yield _event("error", {"status": status, "title": title, "detail": detail, "retry_after": after})


def _event(name: str, data: object) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def post_search() -> Response:
    body = _body(SearchBody)
    found = search(
        _asker(), body.query, body.top_k, body.mode, _filters(body), _rerank(body.rerank), body.weight, body.neighbours
    )
    return jsonify(results=[_passage(p) for p in found.passages], timings=found.timings, warnings=found.warnings)


def _rerank(wanted: bool | None) -> bool:
    """Whether to rerank; None: as it is set up."""
    if wanted and _asker().reranking is None:
        raise _Invalid(
            409,
            "No reranker",
            "No reranker is set up: set ASKFOLDER_RERANKER (docs/retrieval.md), or leave rerank out.",
        )
    return wanted is not False


def _filters(body: SearchBody | AskBody) -> Filters:
    filters = read_filters(collection=body.collection, **body.filters.model_dump())
    if filters.collection is not None:
        with _asker().pool.connection() as connection:
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


def get_documents() -> Response:
    query = _valid(ListQuery, request.args.to_dict())
    with _asker().pool.connection() as connection:
        rows = documents.listed(connection, query.limit, query.cursor, query.state, query.q)
        counts, load, problems = documents.counts(connection), documents.load(connection), sources.problems(connection)
        answering, building = generations.answering(connection), generations.building(connection)
    cursor = rows[-1]["id"] if len(rows) == query.limit else None
    return jsonify(
        documents=[_document(row) for row in rows],
        next_cursor=cursor,
        counts=counts,
        load=load,
        problems=problems,
        index=answering,
        building=building,
    )


def get_document(document_id: int) -> Response:
    with _asker().pool.connection() as connection:
        row = documents.one(connection, document_id)
    if row is None:
        return problem(404, "No such document", f"There is no document {document_id}.")
    return jsonify(_document(row))


def _document(row: dict[str, object]) -> dict[str, object]:
    dates = {name: row[name].isoformat() if row[name] else None for name in ("updated_at", "dated")}  # type: ignore[attr-defined]
    return {**row, **dates}


def post_retry(document_id: int | None = None) -> Response:
    with _asker().pool.connection() as connection:
        count = documents.retry(connection, document_id)
    if document_id is not None and not count:
        return problem(409, "Nothing to retry", f"The document {document_id} has not failed.")
    return jsonify(queued=count)


def get_sources() -> Response:
    with _asker().pool.connection() as connection:
        return jsonify(sources=[_source(row) for row in sources.listed(connection)])


def _source(row: dict[str, object]) -> dict[str, object]:
    return {**row, "scanned_at": row["scanned_at"].isoformat() if row["scanned_at"] else None}  # type: ignore[attr-defined]


def post_reconcile() -> Response:
    """Asks for a full scan; `asked_at`: GET /sources shows a later `scanned_at` when it is through."""
    body = _body(ReconcileBody)
    with _asker().pool.connection() as connection:
        ids = sources.ask_scan(connection, body.confirm, body.rehash)
        row = connection.execute("SELECT now()").fetchone()
    if not ids:
        return problem(409, "No producer", "No producer serves a source now, so nothing can be scanned: is it running?")
    assert row is not None
    return jsonify(sources=ids, asked_at=row[0].isoformat())


def post_doctor() -> Response:
    body = _body(DoctorBody)
    with _asker().pool.connection() as connection:
        findings = doctor.examine(connection)
        queued = doctor.repair(connection, findings) if body.repair else 0
    return jsonify(ok=not findings, findings=findings, queued=queued)


def get_questions() -> Response:
    query = _valid(QuestionsQuery, request.args.to_dict())
    with _asker().pool.connection() as connection:
        rows = questions.listed(connection, query.limit, query.rating, query.cursor)
    cursor = rows[-1]["number"] if len(rows) == query.limit else None
    return jsonify(questions=[_question(row) for row in rows], next_cursor=cursor)


def _question(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, **{name: row[name].isoformat() if row[name] else None for name in ("asked_at", "rated_at")}}


def post_rating(question_id: UUID) -> Response:
    """1: thumb up; -1: thumb down; 0: takes it back."""
    body = _body(RatingBody)
    _log().write()  # the answer may have come a moment ago
    with _asker().pool.connection() as connection:
        found = questions.rate(connection, question_id, body.rating)
    if not found:
        return problem(404, "No such question", f"The log holds no question {question_id}.")
    return jsonify(id=str(question_id), rating=body.rating)


def delete_questions() -> Response:
    _log().write()
    with _asker().pool.connection() as connection:
        return jsonify(forgotten=questions.forget(connection))


def get_usage() -> Response:
    """Rows by day, purpose and model; and what of today's caps is spent, and reserved by calls under way."""
    query = _valid(UsageQuery, request.args.to_dict())
    with _asker().pool.connection() as connection:
        days = usage.by_day(connection, query.days)
        today = usage.today(connection, usage.caps(_asker().settings))
    return jsonify(days=days, today=today)


def healthz() -> Response:
    return jsonify(status="ok")


def readyz() -> Response:
    """503 with what is missing while PostgreSQL, Redis or room on the disk is, or no index is there yet."""
    missing = {}
    asker = _asker()
    try:
        # Not from the pool: a database that is frozen, rather than gone, would hold this answer as long as it likes.
        with db.connect(asker.settings.database_url, 2) as connection:
            if generations.live(connection) is None:
                missing["index"] = "no index yet: the producer makes it when it starts"
    except (psycopg.Error, TransientError):
        missing["database"] = "PostgreSQL does not answer, or its tables are not made yet"
    try:
        queue.client(asker.settings.redis_url).ping()
    except Exception:
        missing["redis"] = "Redis does not answer: questions work, ingestion waits"
    if (free := shutil.disk_usage(asker.settings.data).free) < LEAST_DISK:
        missing["disk"] = (
            f"{free / 1e6:.0f} MB are free at {asker.settings.data}: questions work, ingestion waits; make room there"
        )
    response = jsonify(status="ready" if not missing else "not ready", missing=missing)
    response.status_code = 503 if missing else 200
    return response


_ROUTES = (
    ("/", page, ["GET"]),
    ("/ask", post_ask, ["POST"]),
    ("/search", post_search, ["POST"]),
    ("/documents", get_documents, ["GET"]),
    ("/documents/<int:document_id>", get_document, ["GET"]),
    ("/documents/<int:document_id>/retry", post_retry, ["POST"]),
    ("/documents/retry", post_retry, ["POST"]),
    ("/sources", get_sources, ["GET"]),
    ("/reconcile", post_reconcile, ["POST"]),
    ("/doctor", post_doctor, ["POST"]),
    ("/questions", get_questions, ["GET"]),
    ("/questions", delete_questions, ["DELETE"]),
    ("/questions/<uuid:question_id>/rating", post_rating, ["POST"]),
    ("/usage", get_usage, ["GET"]),
    ("/healthz", healthz, ["GET"]),
    ("/readyz", readyz, ["GET"]),
)
