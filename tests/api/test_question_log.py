"""The question log: entries, ratings, deletion with the documents, and question sets made from it."""

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from shared import db
from shared.errors import PermanentError
from shared.evaluation import question_sets
from shared.ledger import documents
from shared.settings import ROOT
from tests.conftest import KEY, System, until
from tests.standins.providers import AnthropicStandin

OAR = "# The boathouse\n\nThe key hangs behind the third oar. A lost oar costs 45 euros.\n"
HERON = "# The heron\n\nThe heron is called Balduin. It stands in the reeds every morning.\n"
KEY_QUESTION, HERON_QUESTION = "Where does the key hang?", "What is the heron called?"
NOBODY = "Which planet has the longest comet tail?"


def start(system: System, **env: str) -> None:
    (system.folder / "boathouse.md").write_text(OAR)
    (system.folder / "heron.md").write_text(HERON)
    system.start("web", "worker", "producer", **env)
    system.settled(2)


def ask(system: System, question: str, **more: Any) -> dict[str, Any]:
    answer: dict[str, Any] = system.call("POST", "/ask", {"question": question, **more})
    return answer


def logged(system: System, count: int, **query: Any) -> list[dict[str, Any]]:
    def check() -> Any:
        rows = system.call("GET", "/questions", **query)["questions"]
        return rows if len(rows) == count else None

    rows: list[dict[str, Any]] = until(check, 5) if count else system.call("GET", "/questions", **query)["questions"]
    assert len(rows) == count
    return rows


def command(system: System, *arguments: str, code: int = 0) -> str:
    env = system.env | {"ASKFOLDER_URL": f"http://127.0.0.1:{system.port}", "ASKFOLDER_KEY": KEY}
    run = subprocess.run(
        [sys.executable, "-m", "shared.cli", *arguments],
        cwd=ROOT,
        env=env,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == code, run.stderr
    return run.stdout + run.stderr


def rate(system: System, answer: dict[str, Any], rating: int) -> None:
    """Rate an answer at once, possibly before its log entry is written."""
    path = f"/questions/{answer['question_id']}/rating"
    assert system.call("POST", path, {"rating": rating})["rating"] == rating


def test_questions_and_ratings_are_logged(system: System, tmp_path: Path) -> None:
    start(system)
    key, heron, nobody = (ask(system, question) for question in (KEY_QUESTION, HERON_QUESTION, NOBODY))
    assert nobody["verdict"] == "no_answer"
    assert ask(system, "What is secret?", log=False)["question_id"] is None
    for answer, rating in ((key, 1), (heron, -1), (nobody, 1)):
        rate(system, answer, rating)

    rows = {row["question"]: row for row in logged(system, 3)}
    row = rows[KEY_QUESTION]
    assert (row["id"], row["answer"], row["verdict"], row["rating"]) == (
        key["question_id"],
        key["answer"],
        "quoted",
        1,
    )
    assert (row["answerer"], row["model"], row["usage"]) == ("extractive", None, {})
    assert row["timings"]["answer_ms"] > 0
    places = ("document_id", "source", "char_start", "char_end")
    assert row["passages"] == [{name: p[name] for name in places} for p in key["passages"]]
    assert row["citations"] == [{name: c[name] for name in places} | {"stands": True} for c in key["citations"]]
    assert [row["question"] for row in logged(system, 2, rating=1)] == [NOBODY, KEY_QUESTION], "the newest first"
    first = system.call("GET", "/questions", limit=2)
    (last,) = system.call("GET", "/questions", limit=2, cursor=first["next_cursor"])["questions"]
    assert last["question"] == KEY_QUESTION

    rate(system, heron, 0)
    assert logged(system, 1, rating=0)[0]["rated_at"] is None
    assert "no question" in system.call("POST", f"/questions/{uuid4()}/rating", {"rating": 1}, status=404)["detail"]
    assert system.call("POST", f"/questions/{key['question_id']}/rating", {"rating": 2}, status=422)
    assert system.call("GET", "/questions", status=422, rating=2)

    rate(system, heron, -1)
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    assert "2 questions were written to" in command(system, "questions", "--rated", "up", "--export", str(good))
    by_question = {question.text: question for question in question_sets.read_questions(good)}
    citation = key["citations"][0]
    assert by_question[KEY_QUESTION].spans == {"boathouse.md": [(citation["char_start"], citation["char_end"])]}
    assert by_question[KEY_QUESTION].answers == (citation["quote"],), "without the mark"
    assert not by_question[NOBODY].answerable
    assert "docs/evaluation.md" in command(system, "questions", "--rated", "down", "--export", str(bad))
    (line,) = map(json.loads, bad.read_text().splitlines())
    assert (line["question"], line["relevant"], line["answered"]) == (HERON_QUESTION, [], heron["answer"])
    assert line["cited"] == ["heron.md"]
    with pytest.raises(PermanentError, match="names no relevant document"):
        question_sets.read_questions(bad)

    assert f"+ no_answer  {NOBODY}" in command(system, "questions")
    assert "--rated up" in command(system, "questions", "--export", str(good), code=2)

    (system.folder / "boathouse.md").write_text("# Moved\n\n" + OAR)
    until(lambda: not logged(system, 2, rating=1)[1]["citations"][0]["stands"], 30)
    assert "1 answers were left out" in command(system, "questions", "--rated", "up", "--export", str(good))
    assert [question.text for question in question_sets.read_questions(good)] == [NOBODY]

    assert "3 questions were deleted" in command(system, "questions", "--forget")
    logged(system, 0)


def test_words_of_deleted_documents_are_removed_from_the_log(system: System, database_url: str) -> None:
    start(system)
    ask(system, KEY_QUESTION)
    ask(system, HERON_QUESTION)
    ask(system, NOBODY)
    logged(system, 3)
    (system.folder / "boathouse.md").unlink()
    rows = {row["question"]: row for row in logged(system, 2)}  # immediately, before the document is purged
    assert set(rows) == {HERON_QUESTION, NOBODY}
    with db.connect(database_url) as connection:
        connection.execute("UPDATE document SET deleted_at = deleted_at - interval '1 day' WHERE state = 'deleted'")
        assert documents.purge(connection) == 1
        kept = connection.execute("SELECT question, answer FROM question").fetchall()
        assert {question for question, _ in kept} == {HERON_QUESTION, NOBODY}
        assert "oar" not in str(connection.execute("SELECT * FROM question").fetchall())
        left = connection.execute(
            "SELECT count(*), count(d.id) FROM question_place p LEFT JOIN document d ON d.id = p.document_id"
        ).fetchone()
        assert left is not None
        assert left[0] == left[1] > 0


def test_questions_are_answered_without_a_working_log(system: System, database_url: str) -> None:
    with AnthropicStandin() as standin:
        start(system, ANTHROPIC_API_KEY="key-of-a-provider", ANTHROPIC_BASE_URL=standin.url, ASKFOLDER_ASK_SECONDS="5")
        with psycopg.connect(database_url) as other:
            other.execute("LOCK TABLE askfolder.question")
            answer = ask(system, KEY_QUESTION)  # arrives while the log cannot be written
            assert answer["answerer"] == "claude"
        (row,) = logged(system, 1)
        assert row["model"] == answer["model"] == "claude-sonnet-5-5"
        assert row["usage"] == answer["usage"]

        with psycopg.connect(database_url, autocommit=True) as other:
            other.execute("ALTER TABLE askfolder.question RENAME TO elsewhere")
            assert ask(system, HERON_QUESTION)["answer"]
            until(lambda: "question.not_logged" in system.log("web"), 5)
            other.execute("ALTER TABLE askfolder.elsewhere RENAME TO question")
        standin.misbehave("cut_stream", None)
        assert "title" in system.call("POST", "/ask", {"question": KEY_QUESTION}, quiet=True)
        standin.behave()
        logged(system, 1)

        system.stop("web")
        system.start("web", ASKFOLDER_QUESTION_LOG="off")
        assert ask(system, KEY_QUESTION)["question_id"] is None
        logged(system, 1)


def test_a_document_deleted_before_its_entry_is_logged(system: System, database_url: str) -> None:
    start(system)
    with psycopg.connect(database_url) as other:
        other.execute("LOCK TABLE askfolder.question")
        ask(system, HERON_QUESTION, top_k=1)  # the log writer waits and then writes the next two entries together
        ask(system, KEY_QUESTION)
        ask(system, HERON_QUESTION, top_k=1)
        other.execute("DELETE FROM askfolder.document WHERE key = 'boathouse.md'")
    assert [row["question"] for row in logged(system, 2)] == [HERON_QUESTION] * 2


def test_an_answer_can_be_rated_before_its_entry_is_written(system: System, database_url: str) -> None:
    start(system)
    with psycopg.connect(database_url) as other:
        other.execute("LOCK TABLE askfolder.question_place IN SHARE MODE")  # nothing can be added
        answer = ask(system, KEY_QUESTION)
        threading.Timer(1, other.commit).start()
        rate(system, answer, -1)
    assert logged(system, 1)[0]["rating"] == -1
