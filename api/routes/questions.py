"""Routes of the question log."""

from typing import Any
from uuid import UUID

from flask import (
    Response,
    jsonify,
    request,
)

from api import question_log
from api.bodies import QuestionsQuery, RatingBody, read_body, read_query
from api.problems import problem
from api.resources import questions_writer, resources


def get_questions() -> Response:
    query = read_query(QuestionsQuery, request.args.to_dict())
    with resources().pool.connection() as connection:
        rows = question_log.listed(connection, query.limit, query.rating, query.cursor)
    cursor = rows[-1]["number"] if len(rows) == query.limit else None
    return jsonify(questions=[_question(row) for row in rows], next_cursor=cursor)


def _question(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, **{name: row[name].isoformat() if row[name] else None for name in ("asked_at", "rated_at")}}


def post_rating(question_id: UUID) -> Response:
    """1: thumb up; -1: thumb down; 0: takes it back."""
    body = read_body(RatingBody)
    questions_writer().write()  # the answer may have come a moment ago
    with resources().pool.connection() as connection:
        found = question_log.rate(connection, question_id, body.rating)
    if not found:
        return problem(404, "No such question", f"The log holds no question {question_id}.")
    return jsonify(id=str(question_id), rating=body.rating)


def delete_questions() -> Response:
    questions_writer().write()
    with resources().pool.connection() as connection:
        return jsonify(forgotten=question_log.forget(connection))
