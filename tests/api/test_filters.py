"""Filters in a real PostgreSQL: matching documents, refusals, and protection against SQL injection."""

import json
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from psycopg import sql

from api.retrieval.filters import FORMATS, FilterError, Filters, read_filters, refuse_unknown
from shared.db import Connection
from shared.evaluation.run import Choice
from shared.file_types import FORMAT_OF_EXTENSION
from shared.ledger import sources
from tests.conftest import hang_guard
from worker.parsing.detect import UNSUPPORTED

KEYS = (
    "a.md",
    "notes.md",
    "notes/a.md",
    "notes/2024/b.md",
    "notes/2024/c.pdf",
    "notes/2024-03/d.md",
    "notes2/e.md",
    "other/notes/f.md",
    "odd/[x].md",
    "odd/x.md",
    "odd/a%b.md",
    "odd/a_b.md",
    "odd/a\\b.md",
    "odd/a'b.md",
    "odd/a\nb.md",
    "odd/a.+(b)$.md",
    "Ünï/g.md",
    "日本/h.md",
    "src/main.py",
    "src/main.c",
    "src/Main.PY",
    "src/data.json",
)
NOTES = {"notes/a.md", "notes/2024/b.md", "notes/2024/c.pdf", "notes/2024-03/d.md"}


@pytest.fixture
def folder(connection: Connection) -> int:
    return sources.source(connection, "folder", "/somewhere")


def add(connection: Connection, folder: int, key: str, **columns: Any) -> None:
    if "metadata" in columns:
        columns["metadata"] = json.dumps(columns["metadata"])
    connection.execute(
        sql.SQL(
            "INSERT INTO document (source_id, collection_id, key, state, wanted_revision, wanted_size, {names}) "
            "SELECT id, collection_id, %s, 'ready', '1-1', 1, {values} FROM source WHERE id = %s"
        ).format(
            names=sql.SQL(", ").join(map(sql.Identifier, ["live_revision", *columns])),
            values=sql.SQL(", ").join([sql.SQL("%s")] * (len(columns) + 1)),
        ),
        [key, "1-1", *columns.values(), folder],
    )


def found(connection: Connection, **filters: Any) -> set[str]:
    wanted = read_filters(**filters)
    query = sql.SQL("SELECT d.key FROM document d WHERE {}").format(wanted.condition())
    return {row[0] for row in connection.execute(query, wanted.parameters())}


@pytest.fixture
def keys(connection: Connection, folder: int) -> set[str]:
    for key in KEYS:
        extension = key.rpartition(".")[2].lower()
        add(connection, folder, key, format={"md": "markdown", "pdf": "pdf"}.get(extension, "code"))
    return set(KEYS)


def test_no_filter_matches_all_documents(connection: Connection, keys: set[str]) -> None:
    nothings: list[dict[str, Any]] = [{}, {"source": ""}, {"type": []}, {"metadata": {}}]
    for nothing in nothings:
        assert read_filters(**nothing).empty
        assert found(connection, **nothing) == keys
    assert not read_filters(source="a").empty
    assert Filters().condition().as_string() == "TRUE"


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("notes/", NOTES),
        ("notes", NOTES | {"notes.md", "notes2/e.md"}),
        ("notes/2024", {"notes/2024/b.md", "notes/2024/c.pdf", "notes/2024-03/d.md"}),
        ("Ünï", {"Ünï/g.md"}),
        ("日", {"日本/h.md"}),
        ("odd/a%", {"odd/a%b.md"}),
        ("odd/a_", {"odd/a_b.md"}),
        ("odd/a\\", {"odd/a\\b.md"}),
        ("odd/a'", {"odd/a'b.md"}),
        ("NOTES", set()),
        ("*.md", {"a.md", "notes.md"}),
        ("notes/*", {"notes/a.md"}),
        ("notes/**", NOTES),
        ("**/notes/*", {"notes/a.md", "other/notes/f.md"}),
        ("**/*.pdf", {"notes/2024/c.pdf"}),
        ("**.pdf", {"notes/2024/c.pdf"}),
        ("notes/**/d.md", {"notes/2024-03/d.md"}),
        ("notes/**/a.md", {"notes/a.md"}),
        ("notes/*/?.md", {"notes/2024/b.md", "notes/2024-03/d.md"}),
        ("notes?2024*", set()),
        ("notes[/]a.md", set()),
        ("notes[!a]a.md", set()),
        ("notes/202[0-5]/[!b].*", {"notes/2024/c.pdf"}),
        ("notes/202[^4]/*", set()),
        ("odd/[[]x].md", {"odd/[x].md"}),
        ("odd/[x].md", {"odd/x.md"}),
        ("odd/[]\\x[].md", {"odd/x.md"}),
        ("odd/[[]x[]].md", {"odd/[x].md"}),
        ("odd/a[%-_]b.md", {"odd/a%b.md", "odd/a_b.md", "odd/a\\b.md", "odd/a'b.md"}),
        ("odd/a[\\'].md", set()),
        ("odd/a[\\']b.md", {"odd/a\\b.md", "odd/a'b.md"}),
        ("odd/a?b.md", {"odd/a%b.md", "odd/a_b.md", "odd/a\\b.md", "odd/a'b.md", "odd/a\nb.md"}),
        ("odd/a.+(b)$.m*", {"odd/a.+(b)$.md"}),
        ("odd/[", set()),
        ("***:.*", set()),
        ("(?i)NOTES*", set()),
        ("[日]本/**", {"日本/h.md"}),
        ("[あ-龯]本/?.md", {"日本/h.md"}),
    ],
)
def test_the_source_filter(connection: Connection, keys: set[str], source: str, wanted: set[str]) -> None:
    assert found(connection, source=source) == wanted


HOSTILE = (
    "'; DROP TABLE document; --",
    "' OR true --",
    "%' OR '1'='1",
    "\\'; SELECT pg_sleep(9); --",
    "%(f_from)s",
    "{}",
    "{0}",
    "%s",
    "%",
    "$1",
    "a*' OR true --",
    "**\\",
    "*)|(.*",
    "*|.*",
    "[\\w-]*",
    "[[:alpha:]]*",
    "[[.hyphen.]]",
    "*{1,99999}",
    "*\\1",
    "?(*",
    "*$",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_filter_values_are_never_read_as_sql_or_patterns(connection: Connection, keys: set[str], text: str) -> None:
    """Filter values are compared literally; only a document with an equal name or value is found."""
    assert found(connection, source=text) == set()
    assert found(connection, metadata={text: text}) == set()
    assert found(connection, metadata={"a": {text: [text]}}) == set()
    wanted = read_filters(collection=text)
    with pytest.raises(FilterError, match="There is no collection"):
        refuse_unknown(connection, wanted)
    for kind in ("type", "after", "before"):
        with pytest.raises(FilterError):
            read_filters(**{kind: text})  # type: ignore[arg-type]
    assert connection.execute("SELECT count(*) FROM document").fetchone() == (len(KEYS),)


def test_a_glob_with_many_stars_terminates(connection: Connection, folder: int) -> None:
    add(connection, folder, "a" * 2000 + "b")
    with hang_guard(60):
        assert found(connection, source="*a" * 20) == set()
        assert found(connection, source="**a" * 10 + "[a-z]") == {"a" * 2000 + "b"}
    with pytest.raises(FilterError, match="21 wildcards"):
        read_filters(source="*a" * 21)


def test_a_prefix_is_looked_up_in_the_index(connection: Connection, folder: int) -> None:
    connection.execute(
        "INSERT INTO document (source_id, collection_id, key, state, wanted_revision, wanted_size, dated, metadata) "
        "SELECT s.id, s.collection_id, 'folder' || n % 200 || '/' || n, 'ready', '1-1', 1, to_timestamp(n * 86400), "
        "jsonb_build_object('tags', jsonb_build_array('t' || n % 500, 'all')) "
        "FROM source s, generate_series(1, 20000) AS n"
    )
    connection.execute("ANALYZE document")
    narrow: tuple[dict[str, Any], ...] = (
        {"source": "folder77/"},
        {"source": "folder77/*"},
        {"metadata": {"tags": "t77"}},
        {"before": "1970-02-01"},
    )
    for filters in narrow:
        wanted = read_filters(**filters)
        query = sql.SQL("EXPLAIN SELECT d.key FROM document d WHERE {}").format(wanted.condition())
        plan = "\n".join(row[0] for row in connection.execute(query, wanted.parameters()))
        assert "Seq Scan" not in plan, plan
        assert 0 < len(found(connection, **filters)) <= 100


@pytest.mark.parametrize(
    ("last", "successor"),
    [("a", "b"), ("\ud7ff", "\ue000"), ("\U0010fffe", "\U0010ffff"), ("x\U0010ffff", "y"), ("\U0010ffff", None)],
)
def test_the_end_of_a_prefix(connection: Connection, folder: int, last: str, successor: str | None) -> None:
    assert read_filters(source=last).parameters().get("f_to") == successor
    for key in (last, last + "\U0010ffffz", *([successor] if successor else [])):
        add(connection, folder, key)
    assert found(connection, source=last) == {last, last + "\U0010ffffz"}


@pytest.mark.parametrize(
    ("type", "wanted"),
    [
        ("pdf", {"notes/2024/c.pdf"}),
        (".PDF", {"notes/2024/c.pdf"}),
        (["pdf", "pdf", "word"], {"notes/2024/c.pdf"}),
        ("code", {"src/main.py", "src/main.c", "src/Main.PY", "src/data.json"}),
        ("py", {"src/main.py", "src/Main.PY"}),
        (["c", "pdf"], {"src/main.c", "notes/2024/c.pdf"}),
        ("docx", set()),
    ],
)
def test_the_type_filter(connection: Connection, keys: set[str], type: str | list[str], wanted: set[str]) -> None:
    assert found(connection, type=type) == wanted
    markdown = {key for key in KEYS if key.endswith(".md")}
    for name in ("md", "markdown", "Markdown", "qmd"):
        assert found(connection, type=name) == markdown


def test_every_readable_type_can_be_filtered() -> None:
    aliases = {"htm": "html", "txt": "text", "excel": "xlsx", "powerpoint": "pptx", "docm": "docx", "tab": "tsv"}
    for name, format in aliases.items():
        assert read_filters(type=name).types == (format,)
    for name, format in FORMAT_OF_EXTENSION.items():
        if format in UNSUPPORTED:
            with pytest.raises(FilterError, match=f"'{name}' is not a supported file type; use pdf"):
                read_filters(type=name)
        else:
            assert read_filters(type=name).types == ((name if format == "code" else format),)
    assert set(FORMAT_OF_EXTENSION.values()) - set(UNSUPPORTED) <= set(FORMATS)


def test_the_date_filter(connection: Connection, folder: int) -> None:
    moments = {
        "old": datetime(1899, 12, 31, tzinfo=UTC),
        "eve": datetime(2023, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        "first": datetime(2024, 1, 1, tzinfo=UTC),
        "noon": datetime(2024, 6, 30, 12, tzinfo=UTC),
        "last": datetime(2024, 12, 31, 23, 59, 59, tzinfo=UTC),
        "next": datetime(2025, 1, 1, tzinfo=UTC),
        "none": None,
    }
    for key, moment in moments.items():
        add(connection, folder, key, dated=moment)
    assert found(connection, after="2024-01-01", before="2025-01-01") == {"first", "noon", "last"}
    assert found(connection, after="2024-01-01") == {"first", "noon", "last", "next"}
    assert found(connection, before="2024-01-01") == {"old", "eve"}
    assert found(connection, after="2024-06-30T14:00:00+02:00", before="2024-12-31") == {"noon"}
    assert found(connection, after="2024-06-30T14:00:01+02:00", before="2024-12-31") == set()
    assert found(connection, after="2024-06-30T12:00", before="2024-06-30T12:00:01Z") == {"noon"}
    assert read_filters(after="2024-06-30").after == datetime(2024, 6, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "soon",
        "2024",
        "2024-13-01",
        "2024-02-30",
        "30.6.2024",
        "06/30/2024",
        "infinity",
        "0001-01-01T00:00+14:00",
        "\0",
    ],
)
def test_an_invalid_date_is_refused(value: str) -> None:
    for name in ("after", "before"):
        with pytest.raises(FilterError, match=rf"{name}: .* is not a date; write 2024-06-30"):
            read_filters(**{name: value})  # type: ignore[arg-type]


def test_dates_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(FilterError, match=r"`before` \(2024-01-01\) must be later than"):
        read_filters(after="2024-01-01", before="2024-01-01")


METADATA: dict[str, dict[str, Any]] = {
    "one": {"author": "Anna", "tags": "x", "level": 3, "draft": True, "project": {"name": "Heron", "year": 2024}},
    "two": {"author": ["Anna", "Béla"], "tags": ["x", "y"], "level": 3.5, "project": {"name": ["Heron", "Crane"]}},
    "three": {"author": "anna", "tags": ["xy"], "level": "3", "project": ["Heron"]},
    "four": {"o'clock": 'it\'s "late" \\ 100%', "tags": []},
    "five": {},
}


@pytest.mark.parametrize(
    ("metadata", "wanted"),
    [
        ({"author": "Anna"}, {"one", "two"}),
        ({"Author": "Anna"}, {"one", "two"}),
        ({"author": "Ann"}, set()),
        ({"tags": "x"}, {"one", "two"}),
        ({"tags": ["x"]}, {"two"}),
        ({"tags": ["y", "x"]}, {"two"}),
        ({"tags": []}, {"two", "three", "four"}),
        ({"author": "Anna", "tags": "y"}, {"two"}),
        ({"level": 3}, {"one"}),
        ({"level": 3.0}, {"one"}),
        ({"level": "3"}, {"three"}),
        ({"draft": True}, {"one"}),
        ({"draft": "true"}, set()),
        ({"draft": None}, set()),
        ({"project": {"name": "Heron"}}, {"one", "two"}),
        ({"project": {"name": "Heron", "year": 2024}}, {"one"}),
        ({"project": {}}, {"one", "two"}),
        ({"project": "Heron"}, {"three"}),
        ({"o'clock": 'it\'s "late" \\ 100%'}, {"four"}),
    ],
)
def test_the_metadata_filter(connection: Connection, folder: int, metadata: dict[str, Any], wanted: set[str]) -> None:
    for key, values in METADATA.items():
        add(connection, folder, key, metadata=values)
    assert found(connection, metadata=metadata) == wanted


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"a": "x" * 4000}, "longer than 4,000"),
        ({str(n): n for n in range(21)}, "more than 20"),
        ({"a": {"b": {"c": {"d": {"e": {"f": {"g": 1}}}}}}}, "nested more than 5"),
        ({"a": [[[[[[1]]]]]]}, "nested more than 5"),
        ({"a": float("nan")}, "NaN"),
        ({"a": [float("inf")]}, "NaN"),
        ({"a": "\0"}, "NUL"),
        ({"\0": 1}, "NUL"),
        ({"a": ["\ud800"]}, "NUL"),
    ],
)
def test_invalid_metadata_filters_are_refused(metadata: dict[str, Any], words: str) -> None:
    with pytest.raises(FilterError, match=words):
        read_filters(metadata=metadata)


def test_other_invalid_filters_are_refused(connection: Connection) -> None:
    for source in ("a\0", "\ud800", "x" * 1001):
        with pytest.raises(FilterError, match="The source is longer"):
            read_filters(source=source)
    with pytest.raises(FilterError, match="ends before it begins"):
        read_filters(source="[z-a]")
    with pytest.raises(FilterError, match=r"There is no collection 'mine'; use one of: default\."):
        refuse_unknown(connection, read_filters(collection="mine"))
    refuse_unknown(connection, read_filters(collection="default"))
    refuse_unknown(connection, Filters())


def test_all_filters_work_together(connection: Connection, folder: int) -> None:
    """The filters share one statement with other parameters, as in retrieval, also after it was prepared."""
    columns = {"format": "markdown", "dated": datetime(2024, 5, 1, tzinfo=UTC), "metadata": {"tags": ["x"]}}
    for key in ("a/1.md", "a/2.md", "b/1.md"):
        add(connection, folder, key, **columns)
    wanted = read_filters(
        source="a/*",
        type=["md", "py"],
        after="2024-01-01",
        before="2025-01-01",
        metadata={"tags": "x"},
        collection="default",
    )
    query = sql.SQL("SELECT d.key FROM document d WHERE d.key <> %(other)s AND {0} AND {0}").format(wanted.condition())
    for _ in range(12):
        assert connection.execute(query, {"other": "a/2.md", **wanted.parameters()}).fetchall() == [("a/1.md",)]
    assert {name[:2] for name in wanted.parameters()} == {"f_"}
    with pytest.raises(psycopg.ProgrammingError):
        connection.execute(query, wanted.parameters())


def test_filters_as_parameters_of_an_evaluation() -> None:
    """Dots address a filter's field, and values are read as JSON if possible, as docs/evaluation.md describes."""
    words = "filters.source=a/ filters.metadata.tags=x filters.type='[\"pdf\"]' filters.after=2024-01-01"
    body = Choice({}).changed(words).body(query="heron")
    filters = {"source": "a/", "metadata": {"tags": "x"}, "type": ["pdf"], "after": "2024-01-01"}
    assert body == {"query": "heron", "filters": filters}
    assert read_filters(**body["filters"]).types == ("pdf",)
