"""What documents say of themselves: front matter and properties as bounded JSON, their usual names put right."""

import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import yaml  # type: ignore[import-untyped]

from worker.parsing.text import FRONT_MATTER, storable

MAX_BYTES = 16_000  # of all metadata of a document, as JSON
MAX_FRONT = 32_000  # characters of front matter; YAML is slow to read
MAX_VALUE = 2_000  # characters of one value: more is text, not metadata
MAX_NAME = 100
MAX_DEPTH = 5
# The name that filters know it by: what it is called in front matter, pages and properties; the first that is there counts.
NAMES = {
    "author": "author authors dc.creator dcterms.creator citation_author creator",
    "date": (
        "date published pubdate publishdate publish_date published_at date_published article:published_time dc.date dcterms.date "
        "dcterms.issued citation_publication_date"
    ),
    "created": "created created_at creation_date date_created dcterms.created",
    "modified": "modified updated updated_at lastmod last_modified last-modified last_updated article:modified_time dcterms.modified",
    "language": "language lang dc.language dcterms.language",
    "keywords": "keywords",
    "subject": "subject dc.subject dcterms.subject",
    "description": "description dc.description dcterms.description og:description",
}
DATES = ("date", "created", "modified")  # in the order in which they are the document's own
PDF_DATE = re.compile(r"D:(\d{4})(\d\d)?(\d\d)?(\d\d)?(\d\d)?(\d\d)?\s*(?:Z|([-+]\d\d)'?(\d\d)?)?")
PARTS = re.compile(r"(\d{4})(?:[-/.](\d{1,2})(?:[-/.](\d{1,2}))?)?")
ZONE = re.compile(r"\s+(?=(?:Z|[-+]\d\d:?\d\d)$)")
WRITTEN = ("%d %B %Y", "%B %d, %Y", "%d %b %Y", "%b %d, %Y", "%d. %B %Y")
# Programs that know no date write the start of their clock, or what stood in their template (python-docx, python-pptx).
FIRST_STAMP = datetime(1985, 1, 1, tzinfo=UTC)
TEMPLATES = {"2013-12-23T23:15:00Z", "2013-01-27T09:14:16Z", "2013-01-27T09:15:58Z"}


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Numbers, true, false and null; everything else as it is written (YAML 1.1 takes "no" for false and 12:30 for 750).

    No aliases, which a few lines of multiply without end, and little nesting.
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
    """The metadata of YAML (---) or TOML (+++) front matter; {} where there is none, or it is not valid: it is text then."""
    found = FRONT_MATTER.match(text)
    # After a horizontal rule comes a blank line, after the opening of front matter none.
    if not found or not (inner := found[2]) or not inner.split("\n", 1)[0].strip() or len(inner) > MAX_FRONT:
        return {}
    try:
        values = tomllib.loads(inner) if found[1] == "+++" else yaml.load(inner, _Loader)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError):
        return {}  # ValueError and so on: how constructors take values that do not fit an explicit tag
    return described(values.items()) if isinstance(values, dict) else {}


def described(found: Iterable[tuple[object, object]]) -> dict[str, Any]:
    """Names and values as they were found → metadata: names in lower case, the usual ones (NAMES) put right and first.

    `author`, `subject`, `description`, `language`: as they are given; `keywords`: a list; `date`, `created`, `modified`: ISO 8601 where
    they can be understood. A name that comes again makes a list. What passes the limits is left out.
    """
    given: dict[str, Any] = {}
    for key, raw in found:
        name, value = " ".join(storable(str(key)).split()).lower(), plain(raw)
        if not name or len(name) > MAX_NAME or value is None or given.get(name) == value:
            continue
        given[name] = [*listed(given[name]), *listed(value)] if name in given else value
    usual = {}
    for name, others in NAMES.items():
        if value := next((given[other] for other in others.split() if other in given), None):
            usual[name] = normalise(name, value)
    kept: dict[str, Any] = {}
    left = MAX_BYTES
    for name, value in {**usual, **{name: value for name, value in given.items() if name not in usual}}.items():
        size = len(json.dumps({name: value}, ensure_ascii=False).encode())
        if size <= left:
            kept[name] = value
            left -= size
    return kept


def normalise(name: str, value: Any) -> Any:
    if name == "keywords":
        words = re.split("[,;]", value) if isinstance(value, str) else listed(value)
        return [word.strip() if isinstance(word, str) else word for word in words if word not in ("", " ")]
    if name in DATES and isinstance(value, str) and not PARTS.fullmatch(value) and (moment := read_date(value)):
        return moment.isoformat()
    return value


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def plain(value: object, depth: int = 1) -> Any:
    """A value as JSON has it, None for what it cannot hold or what is too much."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) < 1 << 63 else None
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        text = " ".join(storable(value).split())
        return text if 0 < len(text) <= MAX_VALUE else None
    if isinstance(value, date):  # a datetime is one
        return value.isoformat()
    if depth > MAX_DEPTH:
        return None
    if isinstance(value, (list, tuple, set)):
        return [item for one in value if (item := plain(one, depth + 1)) is not None]
    if isinstance(value, dict):
        inner = {storable(str(key)).strip(): plain(one, depth + 1) for key, one in value.items()}
        return {key: one for key, one in inner.items() if key and len(key) <= MAX_NAME and one is not None}
    return None


def document_date(metadata: Mapping[str, Any]) -> datetime | None:
    """The document's own date, in UTC: the first of DATES that can be understood. Days and months begin at midnight in UTC."""
    return next((moment for name in DATES if (moment := read_date(metadata.get(name)))), None)


def read_date(value: object) -> datetime | None:
    """A date as front matter, PDF, Office and mail write it, in UTC; without a zone it is taken as UTC."""
    text = ZONE.sub("", str(value).strip())
    try:
        if found := PDF_DATE.fullmatch(text.rstrip("'")):
            year, month, day, hour, minute, second = (
                int(part or first) for part, first in zip(found.groups()[:6], (1, 1, 1, 0, 0, 0), strict=True)
            )
            moment = datetime.fromisoformat(
                f"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{min(second, 59):02}{found[7] or '+00'}:{found[8] or '00'}"
            )
        elif found := PARTS.fullmatch(text):
            moment = datetime(int(found[1]), int(found[2] or 1), int(found[3] or 1))
        elif text[:2].isdigit() and text[2:4].isdigit():
            moment = datetime.fromisoformat(text)
        else:
            moment = written_date(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError, TypeError, IndexError):
        return None


def written_date(text: str) -> datetime:
    """ "3 March 2024" and the like, or the date of a mail. Raises ValueError."""
    for form in WRITTEN:
        try:
            return datetime.strptime(text, form)
        except ValueError:
            continue
    return parsedate_to_datetime(text)


def stamps(found: Iterable[tuple[str, object]]) -> dict[str, Any]:
    """Metadata from the properties that a program wrote: without dates that it did not mean."""
    metadata = described(found)
    for name in ("created", "modified"):
        moment = read_date(metadata.get(name))
        if moment is None or moment < FIRST_STAMP or f"{moment:%Y-%m-%dT%H:%M:%SZ}" in TEMPLATES:
            metadata.pop(name, None)
    return metadata
