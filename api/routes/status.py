"""Routes of health, readiness and usage."""

import shutil

import psycopg
from flask import (
    Response,
    jsonify,
    request,
)

from api.bodies import UsageQuery, read_query
from api.resources import resources
from shared import broker, db
from shared.errors import TransientError
from shared.ledger import generations
from shared.providers import meter

LEAST_DISK = 50_000_000  # bytes: with less, PostgreSQL is about to fail


def get_usage() -> Response:
    """Rows by day, purpose and model; and what of today's caps is spent, and reserved by calls under way."""
    query = read_query(UsageQuery, request.args.to_dict())
    with resources().pool.connection() as connection:
        days = meter.by_day(connection, query.days)
        today = meter.today(connection, meter.caps(resources().settings))
    return jsonify(days=days, today=today)


def healthz() -> Response:
    return jsonify(status="ok")


def readyz() -> Response:
    """503 with what is missing while PostgreSQL, Redis or room on the disk is, or no index is there yet."""
    missing = {}
    asker = resources()
    try:
        # Not from the pool: a database that is frozen, rather than gone, would hold this answer as long as it likes.
        with db.connect(asker.settings.database_url, 2) as connection:
            if generations.live(connection) is None:
                missing["index"] = "no index yet: the producer makes it when it starts"
    except (psycopg.Error, TransientError):
        missing["database"] = "PostgreSQL does not answer, or its tables are not made yet"
    try:
        broker.client(asker.settings.redis_url).ping()
    except Exception:
        missing["redis"] = "Redis does not answer: questions work, ingestion waits"
    if (free := shutil.disk_usage(asker.settings.data).free) < LEAST_DISK:
        missing["disk"] = (
            f"{free / 1e6:.0f} MB are free at {asker.settings.data}: questions work, ingestion waits; make room there"
        )
    response = jsonify(status="ready" if not missing else "not ready", missing=missing)
    response.status_code = 503 if missing else 200
    return response
