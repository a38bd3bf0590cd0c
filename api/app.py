"""The Flask app: its resources, its routes, its JSON."""

import functools
from datetime import datetime
from typing import Any

from flask import Flask
from flask.json.provider import DefaultJSONProvider

from api.access import allowed_hosts, authorize, security_headers
from api.problems import MAX_BODY, problem_of
from api.question_log import QuestionLog
from api.resources import Resources
from api.retrieval import retrieve
from api.retrieval.reranking import open_reranking
from api.routes import ask, documents, questions, status
from shared import db, keys
from shared.cache import QuestionCache
from shared.models import EmbeddingModel
from shared.providers.choice import BUILT_IN, embedder_of
from shared.providers.claude import Claude
from shared.providers.embedder import Embedder
from shared.providers.meter import Meter
from shared.settings import ROOT, Settings, load


class Json(DefaultJSONProvider):
    """Write datetimes in ISO 8601, and keys in the order of the code."""

    sort_keys = False

    @staticmethod
    def default(value: Any) -> Any:
        return value.isoformat() if isinstance(value, datetime) else DefaultJSONProvider.default(value)


def create_app(settings: Settings | None = None) -> Flask:
    app = Flask("api", root_path=str(ROOT / "api"))
    app.json = Json(app)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    app.extensions["askfolder"] = open_resources(settings or load())
    app.before_request(authorize)
    app.after_request(security_headers)
    app.register_error_handler(Exception, problem_of)
    for module in (ask, documents, questions, status):
        app.register_blueprint(module.bp)
    return app


def open_resources(settings: Settings) -> Resources:
    """Open everything that requests share. SettingsError if something cannot work."""
    pool = db.pool(settings.database_url, 16, retrieve.configure)
    meter = Meter.of(settings, pool, behind=True)

    @functools.cache
    def embedder(model: EmbeddingModel) -> Embedder:
        return embedder_of(settings, meter, model, threads=2)

    answers = settings.answers_with_claude()
    claude = Claude.of(settings, meter) if answers or settings.reranker == "claude" else None
    return Resources(
        settings=settings,
        pool=pool,
        cache=QuestionCache(settings.redis_url),
        embedder_of=lambda generation: embedder(generation.embedding_model),
        local=lambda sentences: embedder(BUILT_IN).embed(sentences),
        reranking=open_reranking(settings, meter, claude),
        meter=meter,
        claude=claude if answers else None,
        questions=QuestionLog(pool, settings.question_log == "on"),
        key=keys.key(settings),
        hosts=allowed_hosts(settings),
    )
