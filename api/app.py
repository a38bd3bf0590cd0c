"""The Flask app: who may come in, what they may ask, and how errors are said."""

import functools
from collections.abc import Sequence

import numpy as np
from flask import (
    Flask,
)

from api.access import allowed_hosts, authorize, security_headers
from api.problems import MAX_BODY, problem_of
from api.question_log import QuestionLog
from api.resources import Resources
from api.retrieval import retrieve
from api.retrieval.reranking import open_reranking
from api.routes.ask import page, post_ask, post_search
from api.routes.documents import get_document, get_documents, get_sources, post_doctor, post_reconcile, post_retry
from api.routes.questions import delete_questions, get_questions, post_rating
from api.routes.status import get_usage, healthz, readyz
from shared import db, keys
from shared.cache import QuestionCache
from shared.ledger.generations import Generation
from shared.providers.choice import embedder_for
from shared.providers.claude import Claude
from shared.providers.embedder import Embedder
from shared.providers.meter import Meter
from shared.settings import ROOT, Settings, load


def create_app(settings: Settings | None = None) -> Flask:
    settings = settings or load()
    app = Flask("api", root_path=str(ROOT / "api"))
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    app.json.sort_keys = False  # type: ignore[attr-defined]
    pool = db.pool(settings.database_url, 16, retrieve.configure)
    meter = Meter.of(settings, pool, behind=True)

    @functools.cache
    def embedder(name: str, model: str, model_path: str, dimensions: int) -> Embedder:
        return embedder_for(settings, name, model, model_path, dimensions, threads=2, meter=meter)

    def embedder_of(generation: Generation) -> Embedder:
        return embedder(generation.embedder, generation.model, generation.model_path, generation.dimensions)

    def local(sentences: Sequence[str]) -> np.ndarray:
        return embedder("local", "all-MiniLM-L6-v2-int8", "", 384).embed(sentences)

    answers, reranks = settings.answers_with_claude(), settings.reranker == "claude"
    claude = Claude.of(settings, meter) if answers or reranks else None
    app.extensions["askfolder"] = Resources(
        settings,
        pool,
        QuestionCache(settings.redis_url),
        embedder_of,
        local,
        open_reranking(settings, meter, claude),
        meter,
        claude if answers else None,
    )
    app.extensions["askfolder.questions"] = QuestionLog(pool, settings.question_log == "on")
    app.extensions["askfolder.key"] = keys.key(settings)
    app.extensions["askfolder.hosts"] = allowed_hosts(settings)
    app.before_request(authorize)
    app.after_request(security_headers)
    app.register_error_handler(Exception, problem_of)
    for rule, function, methods in _ROUTES:
        app.add_url_rule(rule, view_func=function, methods=methods)
    return app


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
