"""Routes of the question log."""

from uuid import UUID

from flask import Blueprint, Response, jsonify, request

from api import question_log
from api.bodies import QuestionsQuery, RatingBody, read_body, read_query
from api.problems import problem
from api.resources import resources

bp = Blueprint("questions", __name__)


@bp.get("/questions")
def get_questions() -> Response:
    query = read_query(QuestionsQuery, request.args.to_dict())
    with resources().pool.connection() as connection:
        rows = question_log.listed(connection, query.limit, query.rating, query.cursor)
    return jsonify(questions=rows, next_cursor=rows[-1]["number"] if len(rows) == query.limit else None)


@bp.post("/questions/<uuid:question_id>/rating")
def post_rating(question_id: UUID) -> Response:
    """Rate an answer: 1 is a thumb up, -1 a thumb down, 0 takes the rating back."""
    body = read_body(RatingBody)
    resources().questions.write()  # the answer may have come a moment ago
    with resources().pool.connection() as connection:
        if not question_log.rate(connection, question_id, body.rating):
            return problem(404, "No such question", f"The log holds no question {question_id}.")
    return jsonify(id=question_id, rating=body.rating)


@bp.delete("/questions")
def delete_questions() -> Response:
    resources().questions.write()
    with resources().pool.connection() as connection:
        return jsonify(forgotten=question_log.forget(connection))
