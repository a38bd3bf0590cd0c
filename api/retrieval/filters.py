"""What a question is narrowed by: source, type, date, metadata, collection; as one condition of SQL over the document `d`."""

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
    "word": "docx",
    "docm": "docx",
    "powerpoint": "pptx",
    "pptm": "pptx",
    "excel": "xlsx",
    "xlsm": "xlsx",
    "txt": "text",
    "log": "text",
    "plain": "text",
    "restructuredtext": "rst",
}
SPECIAL = re.compile(r"[*?\[]")
UNSTORABLE = re.compile("[\0\ud800-\udfff]")


class FilterError(AskfolderError):
    """A filter that nothing can come of; the message says which and what to write instead."""


@dataclass(frozen=True, slots=True)
class Filters:
    """All of these hold for a document that is found; made from what people send by `read_filters`.

    `source`: the path begins with it, or is matched as a whole by it where it is a glob (it holds * ? or [): `*` and `?` stay within a
    folder, `**` crosses folders. `collection`: its name. `types`: formats, or endings of source code. `after` (inclusive) and `before`
    (exclusive): of the document's date, with a zone. `metadata`: values that the document has, in a list too.
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
        """Over the alias `d` of document; TRUE for empty filters. Its parameters are named f_… and given by `parameters`."""
        parts: list[sql.Composable] = []
        if self.collection is not None:
            parts.append(sql.SQL("d.collection_id = (SELECT id FROM collection WHERE name = %(f_collection)s)"))
        if self.source is not None:
            start, end = self._prefix()
            if start:
                parts.append(sql.SQL('d.key COLLATE "C" >= %(f_from)s'))
            if end is not None:
                parts.append(sql.SQL('d.key COLLATE "C" < %(f_to)s'))
            if SPECIAL.search(self.source):
                parts.append(sql.SQL("d.key ~ %(f_glob)s"))
        if self.types:
            parts.append(
                sql.SQL("(d.format = ANY(%(f_formats)s) OR (d.format = 'code' AND d.key ILIKE ANY(%(f_endings)s)))")
            )
        if self.after is not None:
            parts.append(sql.SQL("d.dated >= %(f_after)s"))
        if self.before is not None:
            parts.append(sql.SQL("d.dated < %(f_before)s"))
        for number, (_, value) in enumerate(_leaves(self.metadata or {})):
            one, many = sql.Placeholder(f"f_has_{number}"), sql.Placeholder(f"f_lists_{number}")
            if isinstance(value, (list, dict)):
                parts.append(sql.SQL("d.metadata @> {}::jsonb").format(one))
            else:
                parts.append(sql.SQL("(d.metadata @> {}::jsonb OR d.metadata @> {}::jsonb)").format(one, many))
        return sql.SQL(" AND ").join(parts) if parts else sql.SQL("TRUE")

    def parameters(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self.collection is not None:
            found["f_collection"] = self.collection
        if self.source is not None:
            found["f_from"], found["f_to"] = self._prefix()
            if SPECIAL.search(self.source):
                found["f_glob"] = regular(self.source)
        if self.types:
            found["f_formats"] = [name for name in self.types if name in FORMATS]
            found["f_endings"] = [f"%.{name}" for name in self.types if name not in FORMATS]
        if self.after is not None:
            found["f_after"] = self.after
        if self.before is not None:
            found["f_before"] = self.before
        for number, (path, value) in enumerate(_leaves(self.metadata or {})):
            found[f"f_has_{number}"] = _at(path, value)
            if not isinstance(value, (list, dict)):
                found[f"f_lists_{number}"] = _at(path, [value])
        return found

    def _prefix(self) -> tuple[str, str | None]:
        """The range of keys, in the order of their code points, that begin as `source` does up to its first wildcard."""
        start = SPECIAL.split(self.source or "", maxsplit=1)[0]
        end = start.rstrip("\U0010ffff")
        if not end:
            return start, None
        after = ord(end[-1]) + 1
        return start, end[:-1] + chr(0xE000 if after == 0xD800 else after)


def read_filters(
    *,
    source: str | None = None,
    collection: str | None = None,
    type: str | Sequence[str] | None = None,
    after: str | None = None,
    before: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Filters:
    """Filters from what people send. Raises FilterError with a sentence."""
    named = [type] if isinstance(type, str) else list(type or ())
    found = Filters(
        source=_text("source", source) or None,
        collection=_text("collection", collection) or None,
        types=tuple(dict.fromkeys(_type(name) for name in named)),
        after=_moment("after", after),
        before=_moment("before", before),
        metadata=_metadata(metadata) if metadata else None,
    )
    if found.source and SPECIAL.search(found.source):
        regular(found.source)
    if found.after and found.before and found.after >= found.before:
        raise FilterError(
            f"Nothing is from {after} on and before {before}: `before` must be the later one; it is not included itself."
        )
    return found


def refuse_unknown(connection: Connection, filters: Filters) -> None:
    """Raises FilterError for a collection that is not there: nothing found would look like an answer."""
    if filters.collection is None:
        return
    names = [row[0] for row in connection.execute("SELECT name FROM collection ORDER BY name LIMIT 100")]
    if (
        filters.collection not in names
        and not connection.execute("SELECT 1 FROM collection WHERE name = %s", [filters.collection]).fetchone()
    ):
        raise FilterError(f"There is no collection {filters.collection!r}; there are: {', '.join(names)}.")


def regular(glob: str) -> str:
    """A glob over whole paths as a regular expression of PostgreSQL. Raises FilterError.

    Every other character is escaped or is a letter or digit: nothing of the glob is read as a part of the expression.
    """
    parts, at, wildcards = [], 0, 0
    while at < len(glob):
        rest = glob[at:]
        wildcards += rest[0] in "*?["
        if rest.startswith("**/") and (at == 0 or glob[at - 1] == "/"):
            parts.append("(?:.*/)?")
            at += 3
        elif rest.startswith("*"):
            stars = len(rest) - len(rest.lstrip("*"))
            parts.append(".*" if stars > 1 else "[^/]*")
            at += stars
        elif rest.startswith("?"):
            parts.append("[^/]")
            at += 1
        elif found := re.match(r"\[([!^]?)(\][^\]]*|[^\]]+)\]", rest):
            parts.append(_set(found[2], bool(found[1]), glob))
            at += found.end()
        else:
            parts.append(_literal(rest[0]))
            at += 1
    if wildcards > MAX_WILDCARDS:
        raise FilterError(
            f"The source {glob[:100]!r} holds {wildcards} wildcards, the limit is {MAX_WILDCARDS}; write fewer."
        )
    return f"^{''.join(parts)}$"


def _set(inner: str, negated: bool, glob: str) -> str:
    """One character of a set, never a slash; with escapes by number, which are the same inside of brackets and outside."""
    items = []
    for found in re.finditer(r"(.)-(.)|(.)", inner, re.S):
        first, last = found[1] or found[3], found[2] or found[3]
        if last < first:
            raise FilterError(f"The source {glob[:100]!r} holds the range {first}-{last}, which ends before it begins.")
        items.append(_number(first) if first == last else f"{_number(first)}-{_number(last)}")
    return f"(?!/)[{'^' if negated else ''}{''.join(items)}]"


def _number(character: str) -> str:
    return f"\\U{ord(character):08x}"


def _literal(character: str) -> str:
    return character if character.isascii() and character.isalnum() else _number(character)


def _text(name: str, value: str | None) -> str | None:
    if value is not None and (len(value) > MAX_SOURCE or UNSTORABLE.search(value)):
        raise FilterError(f"The {name} is longer than {MAX_SOURCE:,} characters or holds characters that no name has.")
    return value


def _type(name: str) -> str:
    wanted = name.strip().lower().removeprefix(".")
    wanted = ALIASES.get(wanted, wanted)
    if wanted in FORMATS:
        return wanted
    format = FORMAT_OF_EXTENSION.get(wanted)
    if format == "code":
        return wanted
    if format in FORMATS:
        return format
    raise FilterError(
        f"{name[:50]!r} is no type of file that is read; there are: {', '.join(FORMATS)}; and endings of source code (py, json, …)."
    )


def _moment(name: str, value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value.strip())
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise FilterError(
            f"{name}: {value[:50]!r} is no date; write 2024-06-30, or 2024-06-30T12:00:00+02:00 (UTC without a zone)."
        ) from None


def _metadata(wanted: Mapping[str, Any]) -> dict[str, Any]:
    if len(json.dumps(wanted)) > MAX_METADATA:
        raise FilterError(f"The metadata asked for is longer than {MAX_METADATA:,} characters; ask for less.")
    _refuse_values(wanted, 0)
    lowered = {" ".join(name.split()).lower(): value for name, value in wanted.items()}  # as the names are stored
    if sum(1 for _ in _leaves(lowered)) > MAX_VALUES:
        raise FilterError(f"More than {MAX_VALUES} values of metadata are asked for; ask for fewer.")
    return lowered


def _refuse_values(value: Any, depth: int) -> None:
    if depth > MAX_DEPTH and isinstance(value, (Mapping, list)):
        raise FilterError(f"The metadata asked for is nested more than {MAX_DEPTH} levels deep, as no document's is.")
    if isinstance(value, float) and not math.isfinite(value):
        raise FilterError("The metadata asked for holds a number that JSON does not have (NaN or Infinity).")
    if isinstance(value, str) and UNSTORABLE.search(value):
        raise FilterError("The metadata asked for holds a NUL or half a character, as no document's does.")
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _refuse_values(name, depth)
            _refuse_values(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _refuse_values(inner, depth + 1)


def _leaves(value: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(names that lead to it, value) of every value that is no object, or an empty one."""
    for name, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from _leaves(inner, (*path, name))
        else:
            yield (*path, name), inner


def _at(path: Sequence[str], value: Any) -> str:
    for name in reversed(path):
        value = {name: value}
    return json.dumps(value)
