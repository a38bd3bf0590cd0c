"""Contexts with a real worker: found by their words, paid for once, gone when they are turned off, and a provider that fails."""

import time
from collections import Counter
from collections.abc import Iterator

import psutil
import psycopg
import pytest

from tests.conftest import System, until
from tests.flows.test_ingest import words
from tests.standins.providers import AnthropicStandin, context_word, numbered_chunks, text_block, write_contexts

ON = {"ASKFOLDER_CONTEXT": "claude"}


@pytest.fixture
def claude(system: System) -> Iterator[AnthropicStandin]:
    with AnthropicStandin(reply=write_contexts) as standin:
        system.env |= {
            "ANTHROPIC_API_KEY": "sk-ant-test",
            "ANTHROPIC_BASE_URL": standin.url,
            "ASKFOLDER_ANSWERER": "extractive",
        }
        yield standin


def asked(claude: AnthropicStandin) -> Counter[str]:
    """How often a context was asked for, by the chunk's content."""
    return Counter(row["chunk"] for r in claude.requests for row in numbered_chunks(r["body"]).values())


def live(database_url: str) -> tuple[str, int, int]:
    """The live generation's template, its chunks, and how many of them have a context."""
    with psycopg.connect(database_url) as connection:
        row = connection.execute(
            "SELECT g.template, count(c.id), count(nullif(c.context, '')) FROM askfolder.generation g "
            "LEFT JOIN askfolder.chunk c ON c.generation_id = g.id WHERE g.state = 'live' GROUP BY g.id"
        ).fetchone()
    assert row is not None
    return row


def contexts(database_url: str) -> list[tuple[str, str]]:
    with psycopg.connect(database_url) as connection:
        return connection.execute(
            "SELECT c.content, c.context FROM askfolder.chunk c JOIN askfolder.generation g ON g.id = c.generation_id "
            "WHERE g.state = 'live' AND c.context > '' ORDER BY c.id"
        ).fetchall()


def test_on_edit_off_and_on_again(system: System, database_url: str, claude: AnthropicStandin) -> None:
    lines = [words(n) for n in range(120)]
    (system.folder / "almanac.txt").write_text("\n".join(lines))
    (system.folder / "note.md").write_text("# Heron\n\nIt eats about five hundred grams of fish a day.\n")
    system.start("web", "worker", "producer")
    system.settled(2)
    assert claude.requests == [], "off is the default"
    without = live(database_url)
    assert without[2] == 0

    def restart(**env: str) -> None:
        system.stop("producer", "worker")
        if env["ASKFOLDER_CONTEXT"] == "off":  # before the index with contexts was left
            (system.folder / "new.md").write_text("# Ducks\n\nThey nest on the roof of the tower.\n")
        system.start("worker", "producer", **env)

    restart(**ON)
    until(lambda: live(database_url)[0].endswith("/claude-haiku-5-5"), 60)
    template, chunks, situated = live(database_url)
    assert (chunks, situated) == (without[1], without[1])
    assert set(asked(claude).values()) == {1}
    assert len(asked(claude)) == chunks
    assert len(claude.requests) <= -(-chunks // 10) + 1

    # Found by a word that stands in the context only; what is shown is the document's own text.
    (content, context), *_ = contexts(database_url)
    word = context_word(content)
    assert word in context
    assert word not in content
    found = system.search(word, mode="lexical")
    assert [r["content"] for r in found] == [content]
    assert "context" not in found[0]
    stored = (system.folder / found[0]["source"]).read_text()
    assert content in stored

    # An edit of one line pays for the chunks that it changes.
    before = sum(asked(claude).values())
    lines[60] = words(60, seed=9)
    (system.folder / "almanac.txt").write_text("\n".join(lines))
    until(lambda: system.search(lines[60], mode="lexical")[:1] and lines[60] in system.search(lines[60])[0]["content"])
    system.settled(2)
    assert 1 <= sum(asked(claude).values()) - before <= 3
    # A copy, and another name, pay nothing.
    before = len(claude.requests)
    (system.folder / "copy.txt").write_text("\n".join(lines))
    (system.folder / "note.md").rename(system.folder / "heron.md")
    until(lambda: {"copy.txt", "heron.md"} <= system.documents().keys())
    system.settled(3)
    assert len(claude.requests) == before

    # Off: nothing is asked any more, for new documents neither, though the index with contexts answers until the other is whole.
    restart(ASKFOLDER_CONTEXT="off")
    until(lambda: live(database_url)[0] == without[0], 60)
    system.settled(4)
    assert len(claude.requests) == before
    assert system.search(word, mode="lexical") == []

    restart(**ON)
    until(lambda: live(database_url)[0] == template, 60)
    system.settled(4)
    assert len(claude.requests) == before + 1, "only the document that came in between"
    assert live(database_url)[1] == live(database_url)[2]


def test_a_worker_that_dies_pays_nothing_twice(system: System, database_url: str, claude: AnthropicStandin) -> None:
    claude.delay = 0.4
    (system.folder / "almanac.txt").write_text("\n".join(words(n) for n in range(300)))
    system.start("web", "worker", "producer", **ON)
    until(lambda: len(claude.requests) >= 3)
    killed = 0
    for process in psutil.Process(system.processes["worker"].pid).children():
        killed += 1
        process.kill()
    assert killed
    system.settled(1)
    assert live(database_url)[1] == live(database_url)[2]
    twice = [content for content, times in asked(claude).items() if times > 1]
    assert len(claude.requests) > 5
    assert len(twice) <= 10, "one request at most was under way"


def test_a_provider_that_fails_is_waited_for(system: System, database_url: str, claude: AnthropicStandin) -> None:
    claude.misbehave("429", times=None, retry_after=1)
    (system.folder / "a.md").write_text("# Heron\n\nIt eats about five hundred grams of fish a day.\n")
    system.start("web", "worker", "producer", **ON)
    waiting = until(lambda: [d for d in system.documents().values() if "rate limit" in (d["error"] or "")])[0]
    assert waiting["state"] == "queued"
    claude.behave()
    claude.misbehave("500", times=2)
    assert system.settled(1)["a.md"]["state"] == "ready"
    assert live(database_url)[2] == 1

    # Refused and garbled: ready, without contexts.
    for reason, reply in (("refusal", "no"), ("end_turn", "I would rather not.")):
        claude.stop_reason = reason
        claude.reply = lambda request, reply=reply: [text_block(reply)]  # type: ignore[misc]
        (system.folder / f"{reason}.md").write_text(f"# Pond\n\nThe {reason} of the pond holds water.\n")
        until(lambda name=f"{reason}.md": system.documents().get(name, {}).get("state") == "ready")  # type: ignore[misc]
    assert live(database_url)[1:] == (3, 1)
    started = time.monotonic()
    assert system.search("pond refusal", mode="lexical")[0]["source"] == "refusal.md"
    assert time.monotonic() - started < 5
