"""Caps in a running system: answers are quoted, documents wait, and a raised cap resumes both."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from shared.settings import ROOT
from tests.conftest import KEY, System, until
from tests.standins.providers import AnthropicStandin, VoyageStandin

OAR = "# The boathouse\n\nThe key hangs behind the third oar. A lost oar costs 45 euros.\n"
QUESTION = "Where does the key hang?"
SECRET = "key-of-a-provider-that-is-secret"


@pytest.fixture
def anthropic(system: System) -> Iterator[AnthropicStandin]:
    with AnthropicStandin(delay=0.05) as standin:
        system.env |= {
            "ANTHROPIC_API_KEY": SECRET,
            "ANTHROPIC_BASE_URL": standin.url,
            "ANTHROPIC_MODEL": "claude-haiku-5-5",
        }
        yield standin


def command(system: System, *arguments: str) -> str:
    env = system.env | {"ASKFOLDER_URL": f"http://127.0.0.1:{system.port}", "ASKFOLDER_KEY": KEY}
    run = subprocess.run(
        [sys.executable, "-m", "shared.cli", *arguments],
        cwd=ROOT,
        env=env,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return run.stdout


def test_answers_beyond_the_cap_are_quoted(system: System, anthropic: AnthropicStandin, database_url: str) -> None:
    cap = 0.01
    anthropic.usage_times = 20  # about the tokens of passages from a real folder
    (system.folder / "boathouse.md").write_text(OAR)
    system.start("worker", "producer")
    system.start("web", ASKFOLDER_BUDGET_ANSWERS=str(cap))
    system.settled(1)
    with psycopg.connect(database_url) as other:
        other.execute("LOCK TABLE askfolder.usage")
        answer = system.call("POST", "/ask", {"question": QUESTION})  # returns before its usage is written
        assert answer["answerer"] == "claude"

    def ask(_: int) -> Any:
        return system.call("POST", "/ask", {"question": QUESTION})

    with ThreadPoolExecutor(8) as threads:  # more simultaneous questions than the cap allows
        answers = [answer, *threads.map(ask, range(40))]
    while "00:00 UTC" not in str(answers[-1]["warnings"]):
        answers.append(ask(0))
        assert len(answers) < 150
    by_claude = [answer for answer in answers if answer["answerer"] == "claude"]
    quoted = [answer for answer in answers if answer["answerer"] == "extractive"]
    assert by_claude
    assert quoted
    for answer in answers:
        assert answer["citations"], answer
        assert "third oar" in answer["answer"]
    for answer in quoted:
        (warning,) = answer["warnings"]
        assert warning.startswith("Quoted from the documents, without a model: ")
        assert "ASKFOLDER_BUDGET_ANSWERS" in warning

    paid = sum((a["usage"]["input_tokens"] * 0.10 + a["usage"]["output_tokens"] * 0.50) / 1e6 for a in by_claude)
    assert len(anthropic.requests) == len(by_claude)
    assert cap / 2 < paid <= cap
    until(lambda: system.call("GET", "/usage")["today"]["answers"]["reserved"] == 0, 5)
    usage = system.call("GET", "/usage", days=1)
    assert usage["today"] == {
        "embedding": {"spent": 0, "reserved": 0, "cap": None},
        "answers": {"spent": pytest.approx(paid), "reserved": 0, "cap": cap},
    }
    (row,) = usage["days"]
    assert (row["purpose"], row["model"], row["calls"]) == ("answers", "claude-haiku-5-5", len(by_claude))
    assert row["dollars"] == pytest.approx(paid)
    assert SECRET not in system.log("web")
    assert "oar" not in str(usage)

    table = command(system, "usage", "--days", "7")
    assert f"claude-haiku-5-5{len(by_claude):>12}" in table
    assert f"Today, answers: ${paid:.4f}; the cap is $0.01." in table
    assert "Today, embedding: $0.0000; no cap." in table
    assert '"calls"' in command(system, "usage", "--json")
    assert system.call("GET", "/usage", status=422, days=0)["title"] == "Invalid request"


def test_documents_beyond_the_cap_wait_until_it_is_raised(system: System) -> None:
    with VoyageStandin() as voyage:
        voyage.usage_times = 50
        system.env |= {"ASKFOLDER_EMBEDDER": "voyage", "VOYAGE_API_KEY": SECRET, "VOYAGE_BASE_URL": voyage.url}
        system.start("web", "worker", "producer", ASKFOLDER_BUDGET_EMBEDDING="0.0005")
        for number in range(12):
            (system.folder / f"boathouse-{number}.md").write_text(OAR + f"Number {number} is painted. " * 20)

        def waiting_rows() -> Any:
            rows = system.documents()
            return rows if len(rows) == 12 and all(d["state"] == "ready" or d["error"] for d in rows.values()) else None

        rows = until(waiting_rows, 60)
        waiting = [d for d in rows.values() if d["state"] == "queued"]
        assert waiting
        assert len(waiting) < 12
        for document in waiting:
            assert "ASKFOLDER_BUDGET_EMBEDDING" in document["error"]
            assert "00:00 UTC" in document["error"] or "Running calls" in document["error"]
        found = system.call("POST", "/search", {"query": "Where does the key of the boathouse hang?"})
        assert found["results"]
        assert (
            "Only words were compared, not meaning: Today's ASKFOLDER_BUDGET_EMBEDDING is used up"
            in found["warnings"][0]
        )
        sent = sum(len(request["body"]["input"]) for request in voyage.requests)
        assert 0 < sent <= 12

        system.stop()
        system.start("web", "worker", "producer", ASKFOLDER_BUDGET_EMBEDDING="1")
        assert {d["state"] for d in system.settled(12, 60).values()} == {"ready"}
        today = system.call("GET", "/usage")["today"]["embedding"]
        assert 0.0005 < today["spent"] < 1
        assert SECRET not in system.log("worker")
