"""Metadata and dates follow the files, with a real producer, worker and API; filters over HTTP and in the CLI."""

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from shared.settings import ROOT
from shared.system.servers import Servers
from tests.conftest import KEY, System, running_system, until
from tests.standins.providers import OpenAIStandin
from tests.worker.test_parsing import CORE, docx, word_paragraph

LONG_AGO = datetime(2019, 3, 1, 12, tzinfo=UTC).timestamp()


def report(path: Path, created: str, author: str = "Anna") -> None:
    core = CORE.format(created).replace("Anna", author)
    path.write_bytes(docx(word_paragraph("The heron of the report."), **{"docProps/core.xml": core}))


def one(system: System, source: str) -> dict[str, Any]:
    document: dict[str, Any] = system.call("GET", f"/documents/{system.documents()[source]['id']}")
    return document


def sources(system: System, **filters: Any) -> set[str]:
    return {result["source"] for result in system.search("heron", top_k=100, filters=filters)}


def cli(system: System, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = system.env | {"ASKFOLDER_URL": f"http://127.0.0.1:{system.port}", "ASKFOLDER_KEY": KEY}
    command = [sys.executable, "-m", "shared.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_metadata_of_files_can_be_filtered_in_answers(system: System) -> None:
    with OpenAIStandin() as openai:
        system.env |= {"ASKFOLDER_EMBEDDER": "openai", "OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": openai.url}
        (system.folder / "notes").mkdir()
        front = "---\nauthor: Anna\ntags: [marsh, bird]\ndate: 2024-05-01\n---\n\n"
        (system.folder / "notes" / "a.md").write_text(f"{front}# Heron\n\nThe heron waits in the marsh.\n")
        (system.folder / "notes" / "b.txt").write_text("The heron eats frogs.\n")
        os.utime(system.folder / "notes" / "b.txt", (LONG_AGO, LONG_AGO))
        (system.folder / "page.html").write_text('<meta name="author" content="Béla"><p>The heron on the page.')
        report(system.folder / "report.docx", "2020-01-01T00:00:00Z")
        system.start("web", "worker", "producer")
        rows = system.settled(4)
        assert {d["state"] for d in rows.values()} == {"ready"}, rows
        check_answers(system)
        check_command_line(system)
        paid = len(openai.requests)
        check_changes(system)
        check_rehash(system)
        assert len(openai.requests) == paid, "nothing of that is embedded again"


def check_answers(system: System) -> None:
    note = one(system, "notes/a.md")
    assert note["metadata"] == {"author": "Anna", "date": "2024-05-01", "tags": ["marsh", "bird"]}
    assert note["dated"] == "2024-05-01T00:00:00+00:00"
    assert one(system, "notes/b.txt")["metadata"] == {}
    assert one(system, "notes/b.txt")["dated"] == "2019-03-01T12:00:00+00:00"
    assert "metadata" not in system.documents()["notes/a.md"]
    assert sources(system) == {"notes/a.md", "notes/b.txt", "page.html", "report.docx"}
    assert sources(system, source="notes/") == {"notes/a.md", "notes/b.txt"}
    assert sources(system, source="**/*.txt") == {"notes/b.txt"}
    assert sources(system, type=["md", "docx"]) == {"notes/a.md", "report.docx"}
    assert sources(system, after="2020-01-01", before="2024-05-02") == {"notes/a.md", "report.docx"}
    assert sources(system, before="2020-01-01") == {"notes/b.txt"}
    assert sources(system, metadata={"author": "Anna"}) == {"notes/a.md", "report.docx"}
    assert sources(system, metadata={"author": "Anna", "tags": "marsh"}, source="notes/*", type="md") == {"notes/a.md"}
    assert sources(system, metadata={"author": "Cleo"}) == set()
    question = {"question": "What does the heron eat?"}
    answer = system.call("POST", "/ask", {**question, "filters": {"type": "txt"}})
    assert {p["source"] for p in answer["passages"]} == {"notes/b.txt"}
    assert system.call("POST", "/ask", {**question, "filters": {"before": "1999-01-01"}})["verdict"] == "no_answer"
    for mode in ("dense", "lexical"):
        found = system.search("heron", mode=mode, filters={"type": "html"}, collection="default")
        assert {result["source"] for result in found} == {"page.html"}
    assert "marsh, bird" in system.search("bird", mode="lexical")[0]["content"], "its tags can be searched for"


def check_command_line(system: System) -> None:
    found = cli(
        system, "search", "heron", "--source", "notes/", "--type", "md", "--after", "2024", "--metadata", "tags=x"
    )
    assert (found.returncode, "'2024' is not a date; write 2024-06-30" in found.stderr) == (1, True), found
    options = (
        "--after",
        "2024-01-01",
        "--before",
        "2025-01-01",
        "--metadata",
        "tags=bird",
        "--type",
        "md",
        "--type",
        "html",
    )
    found = cli(system, "search", "heron", *options)
    assert (found.returncode, found.stderr) == (0, "")
    assert "notes/a.md" in found.stdout
    assert "report.docx" not in found.stdout
    assert cli(system, "ask", "Where does the heron wait?", *options).returncode == 0
    assert cli(system, "ask", "Where does the heron wait?", *options, "--source", "page").returncode == 3
    assert "'tags' is not NAME=VALUE" in cli(system, "search", "heron", "--metadata", "tags").stderr


def check_changes(system: System) -> None:
    """Check that a file's date follows the file, a document's own date stays, and new properties are stored."""
    later = LONG_AGO + 86_400
    for name in ("notes/a.md", "notes/b.txt"):
        os.utime(system.folder / name, (later, later))
    until(lambda: one(system, "notes/b.txt")["dated"] == "2019-03-02T12:00:00+00:00")
    assert one(system, "notes/a.md")["dated"] == "2024-05-01T00:00:00+00:00"
    (system.folder / "notes" / "b.txt").rename(system.folder / "c.txt")
    os.utime(system.folder / "c.txt", (later + 86_400, later + 86_400))
    until(lambda: "c.txt" in system.documents() and one(system, "c.txt")["dated"] == "2019-03-03T12:00:00+00:00")
    report(system.folder / "report.docx", "2021-01-01T00:00:00Z", "Cleo")
    until(lambda: sources(system, metadata={"author": "Cleo"}) == {"report.docx"})
    assert one(system, "report.docx")["dated"] == "2021-01-01T00:00:00+00:00"
    (system.folder / "page.html").write_bytes(b"\x7fELF\0\0")
    until(lambda: system.documents()["page.html"]["state"] == "failed")
    failed = one(system, "page.html")
    assert (failed["metadata"], failed["dated"]) == ({}, None)


def check_rehash(system: System) -> None:
    """Check that `reconcile --rehash` or a touch rereads a document without metadata, but only once."""
    with psycopg.connect(system.env["DATABASE_URL"], autocommit=True) as connection:
        connection.execute(
            "UPDATE askfolder.document SET metadata = '{}', metadata_read = false, dated = revision_time(live_revision)"
        )
        assert sources(system, metadata={"tags": "bird"}) == set()
        assert cli(system, "reconcile", "--rehash").returncode == 0
        until(lambda: sources(system, metadata={"tags": "bird"}) == {"notes/a.md"})
        system.settled()
        assert one(system, "report.docx")["metadata"]["author"] == "Cleo"
        connection.execute(
            "UPDATE askfolder.document SET metadata = '{}', metadata_read = false WHERE key = 'notes/a.md'"
        )
        (system.folder / "notes" / "a.md").touch()
        until(lambda: sources(system, metadata={"tags": "bird"}) == {"notes/a.md"})
        system.settled()
        versions = "SELECT key, text_version FROM askfolder.document ORDER BY key"
        before = connection.execute(versions).fetchall()
        assert cli(system, "reconcile", "--rehash").returncode == 0
        assert connection.execute(versions).fetchall() == before


@pytest.fixture(scope="module")
def asked(servers: Servers, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Run an API over an empty folder, for all wrong questions."""
    with running_system(servers, model, tmp_path_factory.mktemp("filters")) as system:
        system.start("web")
        yield system


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"filters": {"type": "odt"}}, "'odt' is not a supported file type; use pdf, docx"),
        ({"filters": {"type": 3}}, "filters.type"),
        ({"filters": {"after": "soon"}}, "after: 'soon' is not a date; write 2024-06-30"),
        ({"filters": {"after": 2024}}, "filters.after"),
        ({"filters": {"metadata": "x"}}, "filters.metadata"),
        ({"filters": {"metadata": {"a": "\0"}}}, "has a NUL"),
        ({"filters": {"source": "a\0"}}, "invalid characters"),
        ({"filters": {"sauce": "a"}}, "filters.sauce"),
        ({"collection": "mine"}, "There is no collection 'mine'; use one of: default."),
    ],
)
def test_wrong_filters_are_refused_with_a_sentence(asked: System, body: dict[str, Any], words: str) -> None:
    for path, question in (("/search", "query"), ("/ask", "question")):
        answer = asked.call("POST", path, {question: "heron", **body}, status=422)
        assert words in answer["detail"]
