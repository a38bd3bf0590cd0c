"""Contexts with a real worker: they are searchable, billed once, removed when turned off; a failing provider."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from shared.system.servers import Servers
from tests.conftest import Share, System, running_system, until
from tests.flows.test_ingest import words
from tests.standins.providers import AnthropicStandin, context_word, numbered_chunks, text_block, write_contexts

ON = {"ASKFOLDER_CONTEXT": "claude"}


@pytest.fixture(scope="module")
def standin() -> Iterator[AnthropicStandin]:
    with AnthropicStandin(reply=write_contexts) as standin:
        yield standin


@pytest.fixture
def claude(standin: AnthropicStandin) -> AnthropicStandin:
    """Return the provider without earlier requests and faults."""
    standin.behave()
    standin.reply, standin.stop_reason, standin.delay = write_contexts, "end_turn", 0.0
    standin.requests.clear()
    return standin


def env(standin: AnthropicStandin) -> dict[str, str]:
    keys = {"ANTHROPIC_API_KEY": "sk-ant-test", "ANTHROPIC_BASE_URL": standin.url}
    return {**keys, "ASKFOLDER_ANSWERER": "extractive"}


@pytest.fixture(scope="module")
def running(
    servers: Servers, model: Path, tmp_path_factory: pytest.TempPathFactory, standin: AnthropicStandin
) -> Iterator[System]:
    """Run a system with contexts, for the tests that do not turn them on or off."""
    with running_system(servers, model, tmp_path_factory.mktemp("contexts"), **ON, **env(standin)) as system:
        yield system


@pytest.fixture
def share(running: System) -> Share:
    return running.share()


def asked(claude: AnthropicStandin) -> Counter[str]:
    """Return content of a chunk → number of requests for its context."""
    return Counter(row["chunk"] for r in claude.requests for row in numbered_chunks(r["body"]).values())


def live(system: System) -> tuple[str, int, int]:
    """Return the live generation's template, its number of chunks of this system, and how many have a context."""
    prefix = system.prefix if isinstance(system, Share) else ""
    with psycopg.connect(system.env["DATABASE_URL"]) as connection:
        row = connection.execute(
            """
            SELECT g.template, count(c.id), count(nullif(c.context, '')) FROM askfolder.generation g
            LEFT JOIN (askfolder.chunk c JOIN askfolder.document d ON d.id = c.document_id AND starts_with(d.key, %s))
            ON c.generation_id = g.id WHERE g.state = 'live' GROUP BY g.id
            """,
            [prefix],
        ).fetchone()
    assert row is not None
    return row


def contexts(system: System) -> list[tuple[str, str]]:
    with psycopg.connect(system.env["DATABASE_URL"]) as connection:
        return connection.execute(
            "SELECT c.content, c.context FROM askfolder.chunk c JOIN askfolder.generation g ON g.id = c.generation_id "
            "WHERE g.state = 'live' AND c.context > '' ORDER BY c.id"
        ).fetchall()


def test_contexts_are_turned_on_and_off_and_on_again(system: System, claude: AnthropicStandin) -> None:
    system.env |= env(claude)
    lines = [words(n) for n in range(120)]
    (system.folder / "almanac.txt").write_text("\n".join(lines))
    (system.folder / "note.md").write_text("# Heron\n\nIt eats about five hundred grams of fish a day.\n")
    system.start("web", "worker", "producer")
    system.settled(2)
    assert claude.requests == [], "off is the default"
    without = live(system)
    assert without[2] == 0

    def restart(**settings: str) -> None:
        system.stop("producer", "worker")
        if settings["ASKFOLDER_CONTEXT"] == "off":  # before the index with contexts is abandoned
            (system.folder / "new.md").write_text("# Ducks\n\nThey nest on the roof of the tower.\n")
        system.start("worker", "producer", **settings)

    restart(**ON)
    until(lambda: live(system)[0].endswith("/claude-haiku-5-5"), 60)
    template, chunks, situated = live(system)
    assert (chunks, situated) == (without[1], without[1])
    assert set(asked(claude).values()) == {1}
    assert len(asked(claude)) == chunks
    assert len(claude.requests) <= -(-chunks // 10) + 1

    # A word that is only in the context finds the chunk; the shown text is the document's own.
    (content, context), *_ = contexts(system)
    word = context_word(content)
    assert word in context
    assert word not in content
    found = system.search(word, mode="lexical")
    assert [r["content"] for r in found] == [content]
    assert "context" not in found[0]
    stored = (system.folder / found[0]["source"]).read_text()
    assert content in stored

    # An edit of one line causes costs for the changed chunks only.
    before = sum(asked(claude).values())
    lines[60] = words(60, seed=9)
    (system.folder / "almanac.txt").write_text("\n".join(lines))
    until(lambda: system.search(lines[60], mode="lexical")[:1] and lines[60] in system.search(lines[60])[0]["content"])
    system.settled(2)
    assert 1 <= sum(asked(claude).values()) - before <= 3
    # A copy and a rename cost nothing.
    before = len(claude.requests)
    (system.folder / "copy.txt").write_text("\n".join(lines))
    (system.folder / "note.md").rename(system.folder / "heron.md")
    until(lambda: {"copy.txt", "heron.md"} <= system.documents().keys())
    system.settled(3)
    assert len(claude.requests) == before

    # Off: no context is requested, even for new documents, while the index with contexts still answers.
    restart(ASKFOLDER_CONTEXT="off")
    until(lambda: live(system)[0] == without[0], 60)
    system.settled(4)
    assert len(claude.requests) == before
    assert system.search(word, mode="lexical") == []

    restart(**ON)
    until(lambda: live(system)[0] == template, 60)
    system.settled(4)
    assert len(claude.requests) == before + 1, "only the document that came in between"
    assert live(system)[1] == live(system)[2]


def test_a_dead_worker_causes_no_cost_twice(share: Share, claude: AnthropicStandin) -> None:
    claude.delay = 0.4
    (share.folder / "almanac.txt").write_text("\n".join(words(n) for n in range(300)))
    until(lambda: len(claude.requests) >= 3)
    killed = 0
    for process in psutil.Process(share.processes["worker"].pid).children():
        killed += 1
        process.kill()
    assert killed
    share.settled(1)
    assert live(share)[1] == live(share)[2]
    twice = [content for content, times in asked(claude).items() if times > 1]
    assert len(claude.requests) > 5
    assert len(twice) <= 10, "one request at most was under way"


def test_documents_wait_for_a_failing_provider(share: Share, claude: AnthropicStandin) -> None:
    claude.misbehave("429", times=None, retry_after=1)
    (share.folder / "a.md").write_text("# Heron\n\nIt eats about five hundred grams of fish a day.\n")
    waiting = until(lambda: [d for d in share.documents().values() if "rate limit" in (d["error"] or "")])[0]
    assert waiting["state"] == "queued"
    claude.behave()
    claude.misbehave("500", times=2)
    assert share.settled(1)["a.md"]["state"] == "ready"
    assert live(share)[2] == 1

    # After a refusal or garbage the document is ready without contexts.
    for reason, reply in (("refusal", "no"), ("end_turn", "I would rather not.")):
        claude.stop_reason = reason
        claude.reply = lambda request, reply=reply: [text_block(reply)]  # type: ignore[misc]
        (share.folder / f"{reason}.md").write_text(f"# Pond\n\nThe {reason} of the pond holds water.\n")
        until(lambda name=f"{reason}.md": share.documents().get(name, {}).get("state") == "ready")  # type: ignore[misc]
    assert live(share)[1:] == (3, 1)
    claude.misbehave("hang", times=None, seconds=600)
    before = len(claude.requests)
    assert share.search("pond refusal", mode="lexical")[0]["source"] == "refusal.md"
    assert len(claude.requests) == before, "a search asks for no context"
