"""Routes of health, readiness and usage."""

import shutil

import psycopg
from flask import Blueprint, Response, jsonify, request

from api.bodies import UsageQuery, read_query
from api.resources import resources
from shared import broker, db
from shared.errors import TransientError
from shared.ledger import generations
from shared.providers import meter

LEAST_DISK = 50_000_000  # bytes; with less, PostgreSQL is about to fail

bp = Blueprint("status", __name__)


@bp.get("/usage")
def get_usage() -> Response:
    """Usage by day, purpose and model; and how much of today's caps is spent, and reserved by calls under way."""
    query = read_query(UsageQuery, request.args.to_dict())
    with resources().pool.connection() as connection:
        days = meter.by_day(connection, query.days)
        return jsonify(days=days, today=meter.today(connection, meter.caps(resources().settings)))


@bp.get("/healthz")
def healthz() -> Response:
    return jsonify(status="ok")


@bp.get("/readyz")
def readyz() -> Response:
    """503 and the missing parts while PostgreSQL or Redis is unavailable, the disk is full, or no index exists."""
    missing = {}
    settings = resources().settings
    try:
        # Not from the pool: a database that hangs, rather than refuses, would block this answer as well.
        with db.connect(settings.database_url, 2) as connection:
            if generations.live(connection) is None:
                missing["index"] = "no index yet: the producer creates it when it starts"
    except (psycopg.Error, TransientError):
        missing["database"] = "PostgreSQL does not answer, or its tables do not exist yet"
    try:
        broker.client(settings.redis_url).ping()
    except Exception:
        missing["redis"] = "Redis does not answer: questions work, ingestion waits"
    if (free := shutil.disk_usage(settings.data).free) < LEAST_DISK:
        place = f"{free / 1e6:.0f} MB are free at {settings.data}"
        missing["disk"] = f"{place}: questions work, ingestion waits; free some space there"
    response = jsonify(status="ready" if not missing else "not ready", missing=missing)
    response.status_code = 503 if missing else 200
    return response
