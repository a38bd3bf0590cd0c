"""Questions over the welcome document and ten files: answers quote the right file or are refused."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from shared.models import NO_ANSWER
from shared.settings import ROOT
from tests.conftest import System, new_database, new_system
from tests.standins.providers import AnthropicStandin

FILES = Path(__file__).parents[1] / "data" / "questions"

ANSWERED = [
    ("What kinds of files can I drop into the folder?", "welcome.md", "DOCX"),
    ("What leaves my machine when no key is set?", "welcome.md", "nothing leaves this machine"),
    ("How do I remove everything that askfolder made?", "welcome.md", ".venv"),
    ("Where is the key of the boathouse?", "boathouse.md", "behind the third oar"),
    ("When does the boathouse open in winter?", "boathouse.md", "8:00"),
    ("What does a lost oar cost?", "boathouse.md", "45 euros"),
    ("Who was elected safety officer?", "minutes.txt", "Anneke Vos"),
    ("How large was the surplus that the treasurer reported?", "minutes.txt", "2,310"),
    ("What is the focal length of the main mirror?", "telescope.rst", "1200 millimetres"),
    ("How much weight can the mount carry?", "telescope.rst", "eleven kilograms"),
    ("How often is the compost heap turned?", "compost.html", "every three weeks"),
    ("May citrus peel go into the compost?", "compost.html", "citrus"),
    ("At what elevation is the station Obermoos?", "stations.csv", "1043"),
    ("What are the photo archives called?", "backup.py", "photos-DAY.tar.zst"),
    ("Up to which amount does the insurance policy cover fire?", "insurance.docx", "180,000"),
    ("To whom is an insurance claim sent?", "insurance.docx", "Maribel Ortega"),
    ("How much honey did the beehives give in 2024?", "garden.pptx", "62 kilograms"),
    ("Who borrowed the bassoon?", "instruments.xlsx", "Petra Lindqvist"),
    ("How many passengers does the ferry Solveig carry?", "ferry.pdf", "140 passengers"),
    ("Where are the life jackets stored?", "ferry.pdf", "under the benches"),
]
REFUSED = [
    "What is the capital of Mongolia?",
    "Who won the football world cup of 1998?",
    "How do I bake a sourdough bread?",
    "What is the boiling point of mercury?",
    "Who wrote the novel Middlemarch?",
    "How do I reset the password of my router?",
    "What is the salary of the club's president?",
    "Which vaccine protects against tetanus?",
    "What does the ferry ticket for a motorcycle cost?",
    "How many moons does Jupiter have?",
]


@pytest.fixture(scope="module")
def answers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Run one system for all questions of this module."""
    servers, model = request.getfixturevalue("servers"), request.getfixturevalue("model")
    with new_database(servers) as url:
        system = new_system(servers, url, model, tmp_path_factory.mktemp("questions"))
        for path in [*FILES.iterdir(), ROOT / "inbox" / "welcome.md"]:
            shutil.copy(path, system.folder)
        try:
            system.start("web", "worker", "producer")
            rows = system.settled(11)
            assert {d["state"] for d in rows.values()} == {"ready"}, rows
            yield system
        finally:
            system.stop()


def check_citations(system: System, answer: dict[str, object]) -> None:
    """Check that the stored text at each citation's range equals its quote, and that the file contains the quote."""
    for citation in answer["citations"]:  # type: ignore[attr-defined]
        with psycopg.connect(system.env["DATABASE_URL"]) as connection:
            row = connection.execute(
                "SELECT content FROM askfolder.document_text WHERE document_id = %s", [citation["document_id"]]
            ).fetchone()
        assert row is not None
        assert row[0][citation["char_start"] : citation["char_end"]] == citation["quote"]
        if (path := system.folder / citation["source"]).suffix in (".md", ".txt", ".rst", ".csv", ".py"):
            assert citation["quote"] in path.read_text()


@pytest.mark.parametrize(("question", "source", "words"), ANSWERED)
def test_known_questions_are_answered(answers: System, question: str, source: str, words: str) -> None:
    answer = answers.call("POST", "/ask", {"question": question})
    assert answer["verdict"] == "quoted", answer
    assert answer["answerer"] == "extractive"
    assert answer["citations"][0]["source"] == source, answer["answer"]
    assert any(words in citation["quote"] and citation["source"] == source for citation in answer["citations"]), answer[
        "answer"
    ]
    assert "[1]" in answer["answer"]
    check_citations(answers, answer)


@pytest.mark.parametrize("question", REFUSED)
def test_unanswerable_questions_are_refused(answers: System, question: str) -> None:
    answer = answers.call("POST", "/ask", {"question": question})
    assert (answer["answer"], answer["citations"], answer["verdict"]) == (NO_ANSWER, [], "no_answer"), answer


def test_citations_name_their_place(answers: System) -> None:
    """A place is a page, slide, sheet or heading."""
    ferry = answers.call("POST", "/ask", {"question": "Where are the life jackets stored?"})["citations"][0]
    assert ferry["page"] == 2
    honey = answers.call("POST", "/ask", {"question": "How much honey did the beehives give in 2024?"})["citations"][0]
    assert honey["page"] == 2
    bassoon = answers.call("POST", "/ask", {"question": "Who borrowed the bassoon?"})["citations"][0]
    assert bassoon["heading"] == ["Loans"]
    oar = answers.call("POST", "/ask", {"question": "What does a lost oar cost?"})["citations"][0]
    assert oar["heading"][-1] == "Damage"
    assert oar["title"] == "Boathouse rules"


def test_claude_over_http(answers: System) -> None:
    """With a key, the stand-in answers from the passages of the same system, and its citations are verified."""
    with AnthropicStandin() as standin:
        answers.stop("web")
        answers.start("web", ANTHROPIC_API_KEY="sk-ant-test", ANTHROPIC_BASE_URL=standin.url)
        try:
            answer = answers.call("POST", "/ask", {"question": "Where is the key of the boathouse?"})
            assert answer["answerer"] == "claude"
            assert answer["verdict"] == "grounded"
            assert answer["citations"][0]["source"] == "boathouse.md"
            check_citations(answers, answer)
            body = standin.requests[0]["body"]
            assert any("cache_control" in block for block in body["system"])
            assert any(block["type"] == "search_result" for message in body["messages"] for block in message["content"])
            standin.misbehave("cut_stream", times=None)
            failed = answers.call("POST", "/ask", {"question": "Where is the key of the boathouse?"}, status=503)
            assert "detail" in failed
        finally:
            answers.stop("web")
            answers.start("web")
