"""Metadata of documents: front matter and properties as bounded JSON, with normalised names."""

import contextlib
import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import yaml  # type: ignore[import-untyped]

from worker.parsing.tables import read_table
from worker.parsing.text import FRONT_MATTER, storable

MAX_BYTES = 16_000  # of all metadata of a document, as JSON
MAX_FRONT = 32_000  # characters of front matter; YAML is slow to read
MAX_VALUE = 2_000  # characters of one value
MAX_NAME = 100
MAX_DEPTH = 5
NAMES = read_table("metadata_names.txt")  # name in filters → names in documents; the first present one counts
DATES = ("date", "created", "modified")  # in the order in which they are the document's own
PDF_DATE = re.compile(r"D:(\d{4})(\d\d)?(\d\d)?(\d\d)?(\d\d)?(\d\d)?\s*(?:Z|([-+]\d\d)'?(\d\d)?)?")
PARTS = re.compile(r"(\d{4})(?:[-/.](\d{1,2})(?:[-/.](\d{1,2}))?)?")
ZONE = re.compile(r"\s+(?=(?:Z|[-+]\d\d:?\d\d)$)")
WRITTEN = ("%d %B %Y", "%B %d, %Y", "%d %b %Y", "%b %d, %Y", "%d. %B %Y")
# Programs without a date write the start of their epoch, or the date of their template (python-docx, python-pptx).
FIRST_STAMP = datetime(1985, 1, 1, tzinfo=UTC)
TEMPLATES = {"2013-12-23T23:15:00Z", "2013-01-27T09:14:16Z", "2013-01-27T09:15:58Z"}


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Reads numbers, true, false and null; other values stay strings (YAML 1.1 reads "no" as false and 12:30 as 750).

    Aliases are refused, because a few lines of them expand without limit, and nesting is bounded.
    """

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias")
        self.depth += 1
        if self.depth > 2 * MAX_DEPTH:
            raise yaml.YAMLError("nested too deeply")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9]\d{0,15})$", "-+0123456789"),
    ("float", r"[-+]?\d{1,15}\.\d{1,15}$", "-+0123456789"),
    ("null", r"(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


def front_matter(text: str) -> dict[str, Any]:
    """Return the metadata of YAML (---) or TOML (+++) front matter; {} if there is none or it is invalid."""
    block = FRONT_MATTER.match(text)
    # A blank line follows a horizontal rule, but not the opening of front matter.
    if not block or not (inner := block[2]) or not inner.split("\n", 1)[0].strip() or len(inner) > MAX_FRONT:
        return {}
    try:
        values = tomllib.loads(inner) if block[1] == "+++" else yaml.load(inner, _Loader)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError):
        return {}  # ValueError etc.: constructors get values that do not fit an explicit tag
    return clean_metadata(values.items()) if isinstance(values, dict) else {}


def clean_metadata(pairs: Iterable[tuple[object, object]]) -> dict[str, Any]:
    """Return metadata from names and values: names in lower case, those of NAMES first, values beyond a limit left out.

    `keywords` becomes a list; `date`, `created` and `modified` become ISO 8601 if they can be parsed. A repeated name
    makes a list.
    """
    raw: dict[str, Any] = {}
    for key, pair_value in pairs:
        name, value = " ".join(storable(str(key)).split()).lower(), json_value(pair_value)
        if name and len(name) <= MAX_NAME and value is not None and raw.get(name) != value:
            raw[name] = [*as_list(raw[name]), *as_list(value)] if name in raw else value
    usual = {}
    for name, others in NAMES.items():
        if value := next((raw[other] for other in others.split() if other in raw), None):
            usual[name] = normalise(name, value)
    metadata: dict[str, Any] = {}
    left = MAX_BYTES
    for name, value in (usual | raw | usual).items():  # the order of `usual`, then the others
        size = len(json.dumps({name: value}, ensure_ascii=False).encode())
        if size <= left:
            metadata[name] = value
            left -= size
    return metadata


def normalise(name: str, value: Any) -> Any:
    if name == "keywords":
        words = re.split("[,;]", value) if isinstance(value, str) else as_list(value)
        return [word.strip() if isinstance(word, str) else word for word in words if word not in ("", " ")]
    if name in DATES and isinstance(value, str) and not PARTS.fullmatch(value) and (moment := read_date(value)):
        return moment.isoformat()
    return value


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def json_value(value: object, depth: int = 1) -> Any:
    """Return a value as JSON, None if JSON cannot hold it or it exceeds a limit."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) < 1 << 63 else None
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        text = " ".join(storable(value).split())
        return text if 0 < len(text) <= MAX_VALUE else None
    if isinstance(value, date):  # or a datetime
        return value.isoformat()
    if depth > MAX_DEPTH:
        return None
    if isinstance(value, (list, tuple, set)):
        return [item for element in value if (item := json_value(element, depth + 1)) is not None]
    if isinstance(value, dict):
        items = {storable(str(key)).strip(): json_value(item, depth + 1) for key, item in value.items()}
        return {key: item for key, item in items.items() if key and len(key) <= MAX_NAME and item is not None}
    return None


def document_date(metadata: Mapping[str, Any]) -> datetime | None:
    """Return the document's own date in UTC: the first of DATES that can be parsed."""
    return next((moment for name in DATES if (moment := read_date(metadata.get(name)))), None)


def read_date(value: object) -> datetime | None:
    """Parse a date of front matter, PDF, Office or mail into UTC. A missing zone means UTC, a missing day the first."""
    text = ZONE.sub("", str(value).strip())
    try:
        if match := PDF_DATE.fullmatch(text.rstrip("'")):
            day = f"{match[1]}-{match[2] or '01'}-{match[3] or '01'}"
            time = f"{match[4] or '00'}:{match[5] or '00'}:{min(int(match[6] or 0), 59):02}"
            moment = datetime.fromisoformat(f"{day}T{time}{match[7] or '+00'}:{match[8] or '00'}")
        elif match := PARTS.fullmatch(text):
            moment = datetime(int(match[1]), int(match[2] or 1), int(match[3] or 1))
        elif text[:2].isdigit() and text[2:4].isdigit():
            moment = datetime.fromisoformat(text)
        else:
            moment = written_date(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError, TypeError, IndexError):
        return None


def written_date(text: str) -> datetime:
    """Parse "3 March 2024" and the like, or the date of a mail. Raises ValueError."""
    for form in WRITTEN:
        with contextlib.suppress(ValueError):
            return datetime.strptime(text, form)
    return parsedate_to_datetime(text)


def file_properties(pairs: Iterable[tuple[str, object]]) -> dict[str, Any]:
    """Return metadata from properties that a program wrote, without placeholder dates."""
    metadata = clean_metadata(pairs)
    for name in ("created", "modified"):
        moment = read_date(metadata.get(name))
        if moment is None or moment < FIRST_STAMP or f"{moment:%Y-%m-%dT%H:%M:%SZ}" in TEMPLATES:
            metadata.pop(name, None)
    return metadata
