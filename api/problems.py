"""Errors as problem details (RFC 9457)."""

import psycopg
from flask import Response, has_request_context, jsonify, request
from psycopg_pool import PoolTimeout
from werkzeug.exceptions import HTTPException

from api.retrieval.filters import FilterError
from shared.errors import AskfolderError, PermanentError, TransientError
from shared.log import log

MAX_BODY = 256 * 1024  # bytes


class InvalidError(Exception):
    """A request that cannot be served; the message says what to change."""

    def __init__(self, status: int, title: str, detail: str) -> None:
        super().__init__(detail)
        self.status, self.title = status, title


def problem(status: int, title: str, detail: str) -> Response:
    response = jsonify(type="about:blank", title=title, status=status, detail=detail)
    response.status_code = status
    response.content_type = "application/problem+json"
    return response


def problem_of(error: Exception) -> Response:
    status, title, detail, retry_after = describe_error(error)
    response = problem(status, title, detail)
    if retry_after is not None:
        response.headers["Retry-After"] = str(retry_after)
    return response


def describe_error(error: Exception) -> tuple[int, str, str, int | None]:
    """Status, title, sentence, and seconds after which to try again."""
    if isinstance(error, InvalidError):
        return error.status, error.title, str(error), None
    if isinstance(error, FilterError):
        return 422, "Invalid filter", str(error), None
    if isinstance(error, HTTPException):
        code = error.code or 500
        detail = f"The request is larger than {MAX_BODY // 1024} kB." if code == 413 else error.description or ""
        return code, error.name, detail, None
    if isinstance(error, (psycopg.OperationalError, PoolTimeout)):
        log.error(f"Database unavailable: {error}", action="api.no_database")
        detail = "PostgreSQL does not answer; try again in a moment (/readyz names the missing part)."
        return 503, "Database unavailable", detail, 2
    if isinstance(error, TransientError):
        return 503, "Try again later", str(error), max(1, round(error.retry_after or 5))
    if isinstance(error, AskfolderError):
        return 502 if isinstance(error, PermanentError) else 500, "Not possible as it is set up", str(error), None
    path = request.path if has_request_context() else ""
    log.error("A request failed", action="api.error", path=path, exc_info=error)
    return 500, "Error in askfolder", "A defect in askfolder stopped this request; see web.log.", None
