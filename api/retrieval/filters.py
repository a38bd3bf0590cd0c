"""Filters of a question (source, type, date, metadata, collection) as one SQL condition over the document `d`."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from psycopg import sql

from shared.db import Connection
from shared.errors import AskfolderError
from shared.file_types import FORMAT_OF_EXTENSION

MAX_SOURCE = 1000  # characters
MAX_WILDCARDS = 20
MAX_METADATA, MAX_DEPTH, MAX_VALUES = 4000, 5, 20  # characters as JSON, levels, values
FORMATS = ("pdf", "docx", "pptx", "xlsx", "html", "markdown", "rst", "text", "csv", "tsv", "code")
ALIASES = {
    **dict.fromkeys(("word", "docm"), "docx"),
    **dict.fromkeys(("powerpoint", "pptm"), "pptx"),
    **dict.fromkeys(("excel", "xlsm"), "xlsx"),
    **dict.fromkeys(("txt", "log", "plain"), "text"),
    "restructuredtext": "rst",
}
SPECIAL = re.compile(r"[*?\[]")
UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_TOKEN = re.compile(r"(?:^|(?<=/))\*\*/|\*+|\?|\[(?P<not>[!^]?)(?P<characters>\][^\]]*|[^\]]+)\]|.", re.S)


class FilterError(AskfolderError):
    """An invalid filter; the message names it, and says what to write instead."""


@dataclass(frozen=True, slots=True)
class Filters:
    """Conditions that a document must all meet. `read_filters` makes them from a request.

    `source`: a prefix of the path, or a glob over all of it if it contains * ? or [ (`*` and `?` stay within a folder,
    `**` crosses folders). `collection`: its name. `types`: formats, or extensions of source code. `after` (inclusive)
    and `before` (exclusive): of the document's date, with a time zone. `metadata`: values that the document has, alone
    or in a list.
    """

    source: str | None = None
    collection: str | None = None
    types: tuple[str, ...] = ()
    after: datetime | None = None
    before: datetime | None = None
    metadata: Mapping[str, Any] | None = None

    @property
    def empty(self) -> bool:
        return self == Filters()

    def condition(self) -> sql.Composable:
        """A condition over the alias `d` of document; TRUE for empty filters. `parameters` has its values, named f_…"""
        return sql.SQL(" AND ").join([clause for clause, _ in self._clauses()] or [sql.SQL("TRUE")])

    def parameters(self) -> dict[str, Any]:
        return {name: value for _, parameters in self._clauses() for name, value in parameters.items()}

    def _clauses(self) -> Iterator[tuple[sql.Composable, dict[str, Any]]]:
        if self.collection is not None:
            clause = "d.collection_id = (SELECT id FROM collection WHERE name = %(f_collection)s)"
            yield sql.SQL(clause), {"f_collection": self.collection}
        if self.source is not None:
            start, end = self._prefix()
            if start:
                yield sql.SQL('d.key COLLATE "C" >= %(f_from)s'), {"f_from": start}
            if end is not None:
                yield sql.SQL('d.key COLLATE "C" < %(f_to)s'), {"f_to": end}
            if SPECIAL.search(self.source):
                yield sql.SQL("d.key ~ %(f_glob)s"), {"f_glob": regular(self.source)}
        if self.types:
            clause = "(d.format = ANY(%(f_formats)s) OR (d.format = 'code' AND d.key ILIKE ANY(%(f_endings)s)))"
            formats = [name for name in self.types if name in FORMATS]
            endings = [f"%.{name}" for name in self.types if name not in FORMATS]
            yield sql.SQL(clause), {"f_formats": formats, "f_endings": endings}
        if self.after is not None:
            yield sql.SQL("d.dated >= %(f_after)s"), {"f_after": self.after}
        if self.before is not None:
            yield sql.SQL("d.dated < %(f_before)s"), {"f_before": self.before}
        for number, (path, value) in enumerate(_leaves(self.metadata or {})):
            has, lists = f"f_has_{number}", f"f_lists_{number}"
            clauses = [sql.SQL("d.metadata @> {}::jsonb").format(sql.Placeholder(name)) for name in (has, lists)]
            if isinstance(value, (list, dict)):
                yield clauses[0], {has: _at(path, value)}
            else:
                yield sql.SQL("({} OR {})").format(*clauses), {has: _at(path, value), lists: _at(path, [value])}

    def _prefix(self) -> tuple[str, str | None]:
        """The range of keys, by code point, that begin like `source` up to its first wildcard."""
        start = SPECIAL.split(self.source or "", maxsplit=1)[0]
        end = start.rstrip("\U0010ffff")
        if not end:
            return start, None
        after = ord(end[-1]) + 1
        return start, end[:-1] + chr(0xE000 if after == 0xD800 else after)


EVERYTHING = Filters()


def read_filters(
    *,
    source: str | None = None,
    collection: str | None = None,
    type: str | Sequence[str] | None = None,
    after: str | None = None,
    before: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Filters:
    """Check the filters of a request. Raises FilterError."""
    types = [type] if isinstance(type, str) else list(type or ())
    filters = Filters(
        source=_text("source", source) or None,
        collection=_text("collection", collection) or None,
        types=tuple(dict.fromkeys(_type(name) for name in types)),
        after=_moment("after", after),
        before=_moment("before", before),
        metadata=_metadata(metadata) if metadata else None,
    )
    if filters.source and SPECIAL.search(filters.source):
        regular(filters.source)
    if filters.after and filters.before and filters.after >= filters.before:
        raise FilterError(f"`before` ({before}) must be later than `after` ({after}).")
    return filters


def refuse_unknown(connection: Connection, filters: Filters) -> None:
    """Raise FilterError for a collection that does not exist, since an empty result would look like an answer."""
    name = filters.collection
    if name is None or connection.execute("SELECT 1 FROM collection WHERE name = %s", [name]).fetchone():
        return
    names = [row[0] for row in connection.execute("SELECT name FROM collection ORDER BY name LIMIT 100")]
    raise FilterError(f"There is no collection {name!r}; use one of: {', '.join(names)}.")


def regular(glob: str) -> str:
    """Translate a glob over paths to a PostgreSQL regular expression. Raises FilterError.

    All characters but wildcards, letters and digits are escaped, so no other part of a glob acts as an expression.
    """
    tokens = list(_TOKEN.finditer(glob))
    wildcards = sum(token[0][0] in "*?[" for token in tokens)
    if wildcards > MAX_WILDCARDS:
        raise FilterError(
            f"The source {glob[:100]!r} has {wildcards} wildcards, the limit is {MAX_WILDCARDS}; write fewer."
        )
    return f"^{''.join(_expression(token, glob) for token in tokens)}$"


def _expression(token: re.Match[str], glob: str) -> str:
    text = token[0]
    if text == "**/":
        return "(?:.*/)?"
    if text[0] == "*":
        return ".*" if len(text) > 1 else "[^/]*"
    if text == "?":
        return "[^/]"
    if token["characters"]:
        return _set(token["characters"], bool(token["not"]), glob)
    return text if text.isascii() and text.isalnum() else _number(text)


def _set(inner: str, negated: bool, glob: str) -> str:
    """A set of characters, never a slash. Escapes by number mean the same inside brackets and outside."""
    items = []
    for item in re.finditer(r"(.)-(.)|(.)", inner, re.S):
        first, last = item[1] or item[3], item[2] or item[3]
        if last < first:
            raise FilterError(f"The source {glob[:100]!r} has the range {first}-{last}, which ends before it begins.")
        items.append(_number(first) if first == last else f"{_number(first)}-{_number(last)}")
    return f"(?!/)[{'^' if negated else ''}{''.join(items)}]"


def _number(character: str) -> str:
    return f"\\U{ord(character):08x}"


def _text(name: str, value: str | None) -> str | None:
    if value is not None and (len(value) > MAX_SOURCE or UNSTORABLE.search(value)):
        raise FilterError(f"The {name} is longer than {MAX_SOURCE:,} characters or has invalid characters.")
    return value


def _type(name: str) -> str:
    """A format, or the extension of a kind of source code."""
    extension = name.strip().lower().removeprefix(".")
    extension = ALIASES.get(extension, extension)
    format = FORMAT_OF_EXTENSION.get(extension)
    if extension in FORMATS or format == "code":
        return extension
    if format in FORMATS:
        return format
    raise FilterError(
        f"{name[:50]!r} is not a supported file type; use {', '.join(FORMATS)} "
        "or an extension of source code (py, json, …)."
    )


def _moment(name: str, value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value.strip())
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise FilterError(
            f"{name}: {value[:50]!r} is not a date; write 2024-06-30, "
            "or 2024-06-30T12:00:00+02:00 (without a zone: UTC)."
        ) from None


def _metadata(values: Mapping[str, Any]) -> dict[str, Any]:
    if len(json.dumps(values)) > MAX_METADATA:
        raise FilterError(f"The metadata filter is longer than {MAX_METADATA:,} characters; ask for less.")
    _refuse_values(values, 0)
    lowered = {" ".join(name.split()).lower(): value for name, value in values.items()}  # as the names are stored
    if sum(1 for _ in _leaves(lowered)) > MAX_VALUES:
        raise FilterError(f"The metadata filter has more than {MAX_VALUES} values; ask for fewer.")
    return lowered


def _refuse_values(value: Any, depth: int) -> None:
    """Raise FilterError for values that no document's metadata can have."""
    if depth > MAX_DEPTH and isinstance(value, (Mapping, list)):
        raise FilterError(f"The metadata filter is nested more than {MAX_DEPTH} levels deep; remove some.")
    if isinstance(value, float) and not math.isfinite(value):
        raise FilterError("The metadata filter has a number that JSON does not allow (NaN or Infinity).")
    if isinstance(value, str) and UNSTORABLE.search(value):
        raise FilterError("The metadata filter has a NUL or a lone surrogate; remove it.")
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _refuse_values(name, depth)
            _refuse_values(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _refuse_values(inner, depth + 1)


def _leaves(value: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path of names, value) of every value that is not an object, or an empty one."""
    for name, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from _leaves(inner, (*path, name))
        else:
            yield (*path, name), inner


def _at(path: Sequence[str], value: Any) -> str:
    for name in reversed(path):
        value = {name: value}
    return json.dumps(value)
