"""Request bodies and query parameters."""

from typing import Annotated, Any, Literal, NoReturn, TypeVar

from flask import request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError
from werkzeug.exceptions import HTTPException

from api.ask import PASSAGES
from api.problems import InvalidError

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
    """What each means: api/retrieval/filters.py."""

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


def read_body(model: type[M]) -> M:
    try:
        raw: Any = request.get_json(force=True)
    except (HTTPException, RecursionError) as error:
        if isinstance(error, HTTPException) and error.code == 413:
            raise
        raise InvalidError(
            400, "Not JSON", f"The body is not valid JSON; send for example {_example(model)}."
        ) from None
    return read_query(model, raw)


def read_query(model: type[M], raw: object) -> M:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        _refuse(error)


def _refuse(error: ValidationError) -> NoReturn:
    details = "; ".join(
        f"{'.'.join(map(str, e['loc'])) or 'body'}: {e['msg'][0].lower()}{e['msg'][1:]}"
        for e in error.errors(include_url=False)
    )
    raise InvalidError(422, "Invalid request", f"{details}.") from None


def _example(model: type[BaseModel]) -> str:
    return {SearchBody: '{"query": "…"}', AskBody: '{"question": "…"}', RatingBody: '{"rating": 1}'}.get(model, "{}")
