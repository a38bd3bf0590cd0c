"""Request bodies and query parameters."""

from typing import Annotated, Any, ClassVar, Literal, TypeVar

from flask import request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError
from werkzeug.exceptions import HTTPException

from api.problems import InvalidError
from api.retrieval.query import PASSAGES, Mode

Question = Annotated[
    str,
    BeforeValidator(lambda value: value.replace("\0", " ").strip() if isinstance(value, str) else value),
    StringConstraints(min_length=1, max_length=20_000),
]  # PostgreSQL refuses NUL


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    example: ClassVar[str] = "{}"


class _Arguments(BaseModel):
    """Query parameters, which arrive as strings."""

    model_config = ConfigDict(extra="forbid")


class FiltersBody(_Body):
    """Described in api/retrieval/filters.py."""

    source: str | None = None
    type: str | list[str] | None = None
    after: str | None = None
    before: str | None = None
    metadata: dict[str, Any] | None = None


class _Question(_Body):
    rerank: bool | None = None  # None: if a reranker is set up
    collection: str | None = Field(default=None, max_length=200)
    filters: FiltersBody = FiltersBody()


class SearchBody(_Question):
    example: ClassVar[str] = '{"query": "…"}'
    query: Question
    top_k: int = Field(10, ge=1, le=100)
    mode: Mode = "hybrid"
    weight: float | None = Field(default=None, ge=0, le=1)
    neighbours: int = Field(default=0, ge=0, le=20_000)


class TurnBody(_Body):
    question: Question
    answer: str = Field("", max_length=100_000)


class AskBody(_Question):
    example: ClassVar[str] = '{"question": "…"}'
    question: Question
    history: list[TurnBody] = Field([], max_length=100)
    mode: Literal["quick", "deep"] = "quick"
    top_k: int = Field(PASSAGES, ge=1, le=100)
    strict: bool | None = None  # None: as in the settings
    log: bool = True


class RatingBody(_Body):
    example: ClassVar[str] = '{"rating": 1}'
    rating: Literal[-1, 0, 1]


class ReconcileBody(_Body):
    confirm: bool = False
    rehash: bool = False


class DoctorBody(_Body):
    repair: bool = False


class ListQuery(_Arguments):
    limit: int = Field(100, ge=1, le=1000)
    cursor: int = Field(0, ge=0)
    state: Literal["queued", "ingesting", "ready", "failed", "quarantined", "excluded", "deleted"] | None = None
    q: str | None = Field(default=None, max_length=1000)


class QuestionsQuery(_Arguments):
    limit: int = Field(100, ge=1, le=1000)
    cursor: int | None = Field(default=None, ge=0)
    rating: int | None = Field(default=None, ge=-1, le=1)


class UsageQuery(_Arguments):
    days: int = Field(30, ge=1, le=3660)


M = TypeVar("M", bound=BaseModel)
B = TypeVar("B", bound=_Body)


def read_body(model: type[B]) -> B:
    """The request's JSON body. InvalidError: it is not valid."""
    try:
        raw: Any = request.get_json(force=True)
    except (HTTPException, RecursionError) as error:
        if isinstance(error, HTTPException) and error.code == 413:
            raise
        detail = f"The body is not valid JSON; send for example {model.example}."
        raise InvalidError(400, "Not JSON", detail) from None
    return read_query(model, raw)


def read_query(model: type[M], raw: object) -> M:
    """Validate a body or query parameters. InvalidError: a field is wrong."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        details = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'body'}: {e['msg'][0].lower()}{e['msg'][1:]}"
            for e in error.errors(include_url=False)
        )
        raise InvalidError(422, "Invalid request", f"{details}.") from None
