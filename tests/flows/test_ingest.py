"""Files are created, edited, renamed, copied and deleted, with a real producer, worker and API; paid texts are counted.

All tests share one running system. Each test has a subfolder and its own lines (`seed`), because known lines are free.
"""

import io
import itertools
import os
import shutil
import signal
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from shared.system.servers import Servers
from tests.conftest import Share, System, running_system, until
from tests.standins.providers import OpenAIStandin


@pytest.fixture(scope="module")
def openai() -> Iterator[OpenAIStandin]:
    with OpenAIStandin() as standin:
        yield standin


@pytest.fixture(scope="module")
def running(
    servers: Servers, model: Path, tmp_path_factory: pytest.TempPathFactory, openai: OpenAIStandin
) -> Iterator[System]:
    """Run a system with the stand-in as embedder, to count every embedded text."""
    env = {"ASKFOLDER_EMBEDDER": "openai", "OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": openai.url}
    folder = tmp_path_factory.mktemp("ingest")
    with running_system(servers, model, folder, ASKFOLDER_CONCURRENCY="3", **env) as system:
        yield system


@pytest.fixture
def system(running: System) -> Share:
    return running.share()


@pytest.fixture
def paid(openai: OpenAIStandin) -> Iterator[OpenAIStandin]:
    """Return the embedder without earlier requests and faults."""
    openai.requests.clear()
    yield openai
    openai.behave()
    openai.delay = 0.0


def texts(standin: OpenAIStandin) -> int:
    return sum(len(request["body"]["input"]) for request in standin.requests)


def words(number: int, seed: int = 0) -> str:
    """Return a sentence that is unique for this number and seed."""
    state, result = (number * 7919 + seed * 104729 + 17) % 1_000_003, []
    for _ in range(12):
        state = (state * 48271 + 11) % 2_147_483_647
        result.append("".join(chr(97 + state // 26**k % 26) for k in range(5)))
    return f"Line {number} says " + " ".join(result) + "."


def test_a_file_is_created_edited_renamed_and_deleted(system: Share) -> None:
    (system.folder / "sub").mkdir()
    note = system.folder / "sub" / "note.md"
    note.write_text("# Heron\n\nThe heron eats about five hundred grams of fish a day.\n")
    until(lambda: [r for r in system.search("What does a heron eat?") if "five hundred" in r["content"]])
    note.write_text("# Heron\n\nThe heron eats about seven hundred grams of frogs a day.\n")
    until(lambda: [r for r in system.search("What does a heron eat?") if "seven hundred" in r["content"]])
    assert not [r for r in system.search("What does a heron eat?") if "five hundred" in r["content"]]
    note.rename(system.folder / "bird.md")
    until(lambda: [r for r in system.search("heron") if r["source"] == "bird.md"])
    assert len(system.search("heron")) == 1
    assert system.search("bird", mode="lexical"), "the new name can be searched for"
    (system.folder / "bird.md").unlink()
    until(lambda: not system.search("heron"))


def docx(lines: list[str]) -> bytes:
    """Return a Word document with a paragraph for each line."""
    space = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    relation = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(
            "[Content_Types].xml", '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"/>'
        )
        archive.writestr(
            "_rels/.rels",
            '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
            f'<Relationship Id="r" Type="{relation}" Target="word/document.xml"/></Relationships>',
        )
        body = "".join(f"<w:p><w:r><w:t>{line}</w:t></w:r></w:p>" for line in lines)
        archive.writestr("word/document.xml", f'<w:document xmlns:w="{space}"><w:body>{body}</w:body></w:document>')
    return packed.getvalue()


def markdown(lines: list[str]) -> list[str]:
    """Add a title, and a heading above every ninth line."""
    marked = ["# The almanac", ""]
    for number, line in enumerate(lines):
        marked += [f"## Part {number // 9}", ""] if number % 9 == 0 else []
        marked += [line, ""]
    return marked


def test_an_edit_embeds_at_most_three_chunks(system: Share, paid: OpenAIStandin) -> None:
    """Insert, change and delete a line at the start, in the middle and at the end of three kinds of documents."""
    plain = {
        "md": markdown([f"almanac {words(n)}" for n in range(1400)]),
        "txt": [f"uniform {words(n, seed=1)}" for n in range(2000)],
        "docx": [f"letter {words(n, seed=2)}" for n in range(400)],
    }

    def write(documents: dict[str, list[str]]) -> None:
        (system.folder / "a.md").write_text("\n".join(documents["md"]))
        (system.folder / "a.txt").write_text("\n".join(documents["txt"]))
        (system.folder / "a.docx").write_bytes(docx(documents["docx"]))

    def all_newer(before: dict[str, str]) -> bool:
        return all(d["state"] == "ready" and d["updated_at"] > before[k] for k, d in system.documents().items())

    write(plain)
    first = system.settled(3, 120)
    assert {d["state"] for d in first.values()} == {"ready"}, first
    assert first["a.md"]["chunks"] >= 150
    assert texts(paid) == sum(d["chunks"] for d in first.values())

    for edit, place in itertools.product(("insert", "change", "delete"), (0.0, 0.5, 1.0)):
        edited = {}
        for number, (kind, lines) in enumerate(plain.items()):
            at = min(int(len(lines) * place), len(lines) - 1)
            new = [f"{kind} {words(at, seed=50 + number)}"]
            edited[kind] = (
                lines[:at] + {"insert": [*new, lines[at]], "change": new, "delete": []}[edit] + lines[at + 1 :]
            )
        for documents in (edited, plain):
            seen, before = len(paid.requests), {k: d["updated_at"] for k, d in system.documents().items()}
            write(documents)
            until(partial(all_newer, before))
            new_texts = [text for request in paid.requests[seen:] for text in request["body"]["input"]]
            for kind, mark in (("md", "almanac"), ("txt", "uniform"), ("docx", "letter")):
                count = sum(mark in text for text in new_texts)
                assert count <= 3, (edit, place, kind, count)
            assert documents is edited or new_texts == [], "what was there before is never paid for again"


def test_copies_renames_moves_and_restarts_embed_nothing(system: Share, paid: OpenAIStandin) -> None:
    lines = [words(n, seed=10) for n in range(100)]
    (system.folder / "a.txt").write_text("\n".join(lines))
    system.settled(1)
    count = texts(paid)
    (system.folder / "sub").mkdir()
    shutil.copy2(system.folder / "a.txt", system.folder / "sub" / "copy.txt")
    (system.folder / "a.txt").rename(system.folder / "b.txt")
    until(lambda: {n: d["state"] for n, d in system.documents().items()} == {"b.txt": "ready", "sub/copy.txt": "ready"})
    (system.folder / "sub").rename(system.folder / "moved")
    until(
        lambda: {n: d["state"] for n, d in system.documents().items()} == {"b.txt": "ready", "moved/copy.txt": "ready"}
    )
    (system.folder / "b.txt").unlink()
    until(lambda: "b.txt" not in system.documents())
    (system.folder / "b.txt").write_text("\n".join(lines))
    until(lambda: system.documents().get("b.txt", {}).get("state") == "ready")
    system.stop("worker", "producer")
    os.utime(system.folder / "b.txt")
    before = len(system.log("producer"))
    system.start("worker", "producer")
    until(lambda: "scan.done" in system.log("producer")[before:])
    system.settled(2)
    assert texts(paid) == count


def test_a_changed_title_embeds_at_most_two_chunks(system: Share, paid: OpenAIStandin) -> None:
    body = "\n\n".join(words(n, seed=11) for n in range(300))
    (system.folder / "a.md").write_text(f"# First title\n\n{body}\n")
    system.settled(1)
    count = texts(paid)
    (system.folder / "a.md").write_text(f"# Second title\n\n{body}\n")
    until(lambda: (d := system.documents()["a.md"])["title"] == "Second title" and d["state"] == "ready")
    assert texts(paid) - count <= 2
    assert system.search("second title", mode="lexical")[0]["title"] == "Second title"


def test_a_thousand_chunks_take_few_requests(system: Share, paid: OpenAIStandin) -> None:
    (system.folder / "big.txt").write_text("\n".join(words(n, seed=12) for n in range(9000)))
    chunks = system.settled(1, 90)["big.txt"]["chunks"]
    assert chunks >= 600
    assert len(paid.requests) <= 12 * chunks / 1000 + 1
    before = len(paid.requests)
    assert system.search("Line 77 says")
    assert system.search(" Line 77  says ")
    assert len(paid.requests) == before + 1, "the same question is embedded once"


# A worker that was killed counts as capacity for some seconds, so this test comes before the next one.
def test_a_small_file_does_not_wait_for_large_files(system: Share, paid: OpenAIStandin) -> None:
    paid.delay = 4.0
    for n in range(3):
        (system.folder / f"large{n}.txt").write_text("\n".join(words(i, seed=n + 20) for i in range(3000)))
    until(lambda: sum(d["stage"] == "embedding" for d in system.documents().values()) >= 2)
    (system.folder / "note.md").write_text("The password of the boathouse is on the blackboard.")
    until(lambda: [r for r in system.search("boathouse", mode="lexical") if r["source"] == "note.md"], 40)
    assert any(d["state"] != "ready" for d in system.documents().values())
    paid.delay = 0.0
    system.settled(4)


def test_a_killed_worker_pays_for_few_texts_twice(system: Share, paid: OpenAIStandin) -> None:
    paid.delay = 0.4
    (system.folder / "big.txt").write_text("\n".join(words(n, seed=13) for n in range(4000)))

    def row(query: str) -> tuple[Any, ...] | None:
        with psycopg.connect(system.env["DATABASE_URL"]) as connection:
            return connection.execute(query, [f"{system.prefix}big.txt"]).fetchone()

    def nearly_done() -> bool:
        progress = row(
            "SELECT done >= 0.7 * total FROM askfolder.task JOIN askfolder.document ON document_id = id WHERE key = %s"
        )
        return bool(progress and progress[0])

    until(nearly_done, 30, pause=0.01)
    system.stop("worker", number=signal.SIGKILL)
    task = row(
        """
        SELECT state, live_revision, leased_until > now()
        FROM askfolder.document JOIN askfolder.task ON document_id = id WHERE key = %s
        """
    )
    assert task == ("ingesting", None, True), "nothing half-written is visible"
    assert system.search("Line 77") == []
    system.start("worker")  # the new worker sees that the process ended, and does not wait for the end of its lease
    document = system.settled(1)["big.txt"]
    assert document["state"] == "ready", document
    chunks = document["chunks"]
    largest = max(len(request["body"]["input"]) for request in paid.requests)
    assert chunks > 400
    assert texts(paid) <= chunks + largest + 1  # one request was for the question
    counts = row(
        """
        SELECT count(*), count(v.chunk_id), count(l.chunk_id)
        FROM askfolder.document d JOIN askfolder.chunk c ON c.document_id = d.id
        LEFT JOIN askfolder.vector_1 v ON v.chunk_id = c.id LEFT JOIN askfolder.lexical_1 l ON l.chunk_id = c.id
        WHERE d.key = %s
        """
    )
    assert counts == (chunks, chunks, chunks)


def test_a_failed_update_withdraws_the_document_and_reports_the_reason(system: Share) -> None:
    path = system.folder / "a.md"
    path.write_text("The heron stands still.")
    until(lambda: system.search("heron"))
    path.write_bytes(b"")
    row = until(lambda: (d := system.documents()["a.md"])["state"] == "failed" and d)
    assert "a.md is empty" in row["error"]
    assert system.search("heron") == []
    path.write_text("The heron flies.")
    until(lambda: system.search("heron"))


def test_an_unavailable_provider_keeps_the_old_version(system: Share, paid: OpenAIStandin) -> None:
    path = system.folder / "a.md"
    path.write_text("The heron stands still.")
    until(lambda: system.search("heron"))
    paid.misbehave("401", times=None)
    path.write_text("The heron flies away.")
    row = until(lambda: (d := system.documents()["a.md"])["error"] and d)
    assert "OPENAI_API_KEY" in row["error"]
    assert "sk-test" not in row["error"]
    assert row["state"] == "queued"
    assert "stands still" in system.search("heron", mode="lexical")[0]["content"]
    paid.behave()
    system.call("POST", f"/documents/{row['id']}/retry")
    until(lambda: "flies away" in system.search("heron", mode="lexical")[0]["content"])


def test_files_with_odd_names_are_ingested(system: Share) -> None:
    names = [
        b"with space.md",
        b"quo\"te's.md",
        b"new\nline.md",
        "émoji 🦩.md".encode(),
        b"caf\xe9.md",
        b"100%.md",
        b"%E9.md",
        b"[a]*?.md",
    ]
    for number, name in enumerate(names):
        Path(os.fsdecode(os.fsencode(system.folder) + b"/" + name)).write_text(f"Flamingo number {number} stands here.")
    outside = system.data / "secret.md"
    outside.write_text("The secret flamingo.")
    (system.folder / "link.md").symlink_to(outside)
    (system.folder / ".hidden.md").write_text("The hidden flamingo.")
    rows = system.settled(len(names))
    assert {d["state"] for d in rows.values()} == {"ready"}, rows
    assert "caf%E9.md" in rows
    assert len({r["source"] for r in system.search("flamingo", top_k=50)}) == len(names)
    assert not [r for r in system.search("flamingo", top_k=50) if "secret" in r["content"] or "hidden" in r["content"]]
