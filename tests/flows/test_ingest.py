"""Files dropped, edited, renamed, copied and deleted, with a real producer, worker and API; what is paid for, and what is not."""

import io
import itertools
import os
import shutil
import signal
import time
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psycopg
import pytest

from tests.conftest import System, until
from tests.standins.providers import OpenAIStandin


@pytest.fixture
def openai() -> Iterator[OpenAIStandin]:
    with OpenAIStandin() as standin:
        yield standin


@pytest.fixture
def paid(system: System, openai: OpenAIStandin) -> OpenAIStandin:
    """The stand-in as the system's embedder, so that every embedded text can be counted."""
    system.env |= {"ASKFOLDER_EMBEDDER": "openai", "OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": openai.url}
    return openai


def texts(standin: OpenAIStandin) -> int:
    return sum(len(request["body"]["input"]) for request in standin.requests)


def words(number: int, seed: int = 0) -> str:
    """A sentence like no other."""
    state, result = (number * 7919 + seed * 104729 + 17) % 1_000_003, []
    for _ in range(12):
        state = (state * 48271 + 11) % 2_147_483_647
        result.append("".join(chr(97 + state // 26**k % 26) for k in range(5)))
    return f"Line {number} says " + " ".join(result) + "."


def test_drop_edit_rename_delete(system: System) -> None:
    system.start("web", "worker", "producer")
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
    """A Word document, a paragraph a line."""
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
    """A title, and a heading above every ninth line."""
    marked = ["# The almanac", ""]
    for number, line in enumerate(lines):
        marked += [f"## Part {number // 9}", ""] if number % 9 == 0 else []
        marked += [line, ""]
    return marked


def test_edits_embed_three_chunks_at_most(system: System, paid: OpenAIStandin) -> None:
    """A line inserted, changed and deleted at the start, in the middle and at the end of three kinds of documents."""
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
    system.start("web", "worker", "producer")
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


def test_copies_renames_moves_and_restarts_embed_nothing(system: System, paid: OpenAIStandin) -> None:
    lines = [words(n) for n in range(100)]
    (system.folder / "a.txt").write_text("\n".join(lines))
    system.start("web", "worker", "producer")
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
    system.start("worker", "producer")
    until(lambda: "scan.done" in system.log("producer").rpartition("generation.wanted")[2])
    system.settled(2)
    assert texts(paid) == count


def test_changed_title_or_heading_embeds_one_chunk(system: System, paid: OpenAIStandin) -> None:
    body = "\n\n".join(words(n) for n in range(300))
    (system.folder / "a.md").write_text(f"# First title\n\n{body}\n")
    system.start("web", "worker", "producer")
    system.settled(1)
    count = texts(paid)
    (system.folder / "a.md").write_text(f"# Second title\n\n{body}\n")
    until(lambda: (d := system.documents()["a.md"])["title"] == "Second title" and d["state"] == "ready")
    assert texts(paid) - count <= 2
    assert system.search("second title", mode="lexical")[0]["title"] == "Second title"


def test_thousand_chunks_take_few_requests(system: System, paid: OpenAIStandin) -> None:
    (system.folder / "big.txt").write_text("\n".join(words(n) for n in range(9000)))
    system.start("web", "worker", "producer")
    chunks = system.settled(1, 90)["big.txt"]["chunks"]
    assert chunks >= 600
    assert len(paid.requests) <= 12 * chunks / 1000 + 1
    before = len(paid.requests)
    assert system.search("Line 77 says")
    assert system.search(" Line 77  says ")
    assert len(paid.requests) == before + 1, "the same question is embedded once"


def test_killed_worker_pays_little_twice(system: System, paid: OpenAIStandin, database_url: str) -> None:
    paid.delay = 0.4
    (system.folder / "big.txt").write_text("\n".join(words(n) for n in range(4000)))
    system.start("web", "worker", "producer")

    def nearly_done() -> bool:
        with psycopg.connect(database_url) as connection:
            row = connection.execute("SELECT done >= 0.7 * total FROM askfolder.task").fetchone()
            return bool(row and row[0])

    until(nearly_done, 30, pause=0.01)
    system.stop("worker", number=signal.SIGKILL)
    with psycopg.connect(database_url) as connection:
        held = connection.execute(
            "SELECT state, live_revision, leased_until > now() FROM askfolder.document JOIN askfolder.task ON document_id = id"
        ).fetchone()
        assert held == ("ingesting", None, True), "nothing half-written is visible"
    assert system.search("Line 77") == []
    system.start("worker")  # it sees that the holder of the lease is no more, and does not wait for the lease's end
    row = system.settled(1)["big.txt"]
    assert row["state"] == "ready", row
    chunks = row["chunks"]
    largest = max(len(request["body"]["input"]) for request in paid.requests)
    assert chunks > 400
    assert texts(paid) <= chunks + largest + 1  # one question was asked
    with psycopg.connect(database_url) as connection:
        counts = connection.execute(
            "SELECT (SELECT count(*) FROM askfolder.chunk), (SELECT count(*) FROM askfolder.vector_1), (SELECT count(*) FROM askfolder.lexical_1)"
        ).fetchone()
    assert counts == (chunks, chunks, chunks)


def test_small_file_does_not_wait_for_large_ones(system: System) -> None:
    for n in range(3):
        (system.folder / f"large{n}.txt").write_text("\n".join(words(i, seed=n + 1) for i in range(4000)))
    system.env["ASKFOLDER_CONCURRENCY"] = "3"
    system.start("web", "worker", "producer")
    until(lambda: sum(d["stage"] == "embedding" for d in system.documents().values()) >= 2)
    started = time.monotonic()
    (system.folder / "note.md").write_text("The password of the boathouse is on the blackboard.")
    until(lambda: [r for r in system.search("boathouse password") if r["source"] == "note.md"], 20)
    assert any(d["state"] != "ready" for d in system.documents().values()), f"{time.monotonic() - started:.1f} s"


def test_failed_update_withdraws_and_says_why(system: System) -> None:
    path = system.folder / "a.md"
    path.write_text("The heron stands still.")
    system.start("web", "worker", "producer")
    until(lambda: system.search("heron"))
    path.write_bytes(b"")
    row = until(lambda: (d := system.documents()["a.md"])["state"] == "failed" and d)
    assert "a.md is empty" in row["error"]
    assert system.search("heron") == []
    path.write_text("The heron flies.")
    until(lambda: system.search("heron"))


def test_provider_away_keeps_the_old_version(system: System, paid: OpenAIStandin) -> None:
    path = system.folder / "a.md"
    path.write_text("The heron stands still.")
    system.start("web", "worker", "producer")
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


def test_odd_names(system: System) -> None:
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
    outside = system.folder.parent / "secret.md"
    outside.write_text("The secret flamingo.")
    (system.folder / "link.md").symlink_to(outside)
    (system.folder / ".hidden.md").write_text("The hidden flamingo.")
    system.start("web", "worker", "producer")
    rows = system.settled(len(names))
    assert {d["state"] for d in rows.values()} == {"ready"}, rows
    assert "caf%E9.md" in rows
    assert len({r["source"] for r in system.search("flamingo", top_k=50)}) == len(names)
    assert not [r for r in system.search("flamingo", top_k=50) if "secret" in r["content"] or "hidden" in r["content"]]
