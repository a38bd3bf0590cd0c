"""`askfolder eval --answers`: the measures, the report, and a running system with known answers."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from shared.evaluation import report, significance
from shared.evaluation.answers import Answered, Answers, answered, token_f1
from shared.evaluation.question_sets import Question
from shared.models import NO_ANSWER
from shared.prices import PRICES, Price
from shared.providers.meter import Tokens
from shared.settings import ROOT
from tests.conftest import KEY, System
from tests.shared.test_evaluation import HOSTILE, Tags
from tests.standins.providers import AnthropicStandin

OAR = "# The boathouse\n\nThe key hangs behind the third oar. A lost oar costs 45 euros.\n"
HERON = "# The heron\n\nThe heron is called Balduin. It stands in the reeds every morning.\n"


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("The key hangs there. [1]", "key hangs THERE", 1.0),
        ("Balduin", "the heron is called Balduin", 2 / 5),
        ("nothing of it", "Balduin", 0.0),
        ("45 euros, 45 euros", "45 euros", 2 / 3),
        ("argv[1] is it", "argv 1 is it", 1.0),
        ("東京です。", "東京", 2 * 2 / 6),
        ("กรุงเทพ", "กรุงเทพ", 1.0),
        ("हिन्दी भाषा", "हिन्दी", 2 / 3),
        (NO_ANSWER, "information", 0.0),
        ("", "", 1.0),
    ],
)
def test_token_f1_of_an_answer(answer: str, reference: str, expected: float) -> None:
    assert token_f1(answer, reference) == pytest.approx(expected)


SPANNED = Question("1", "Where?", {"a.md": 1}, {"a.md": [(10, 20)]}, answers=("Behind the oar.", "The third oar"))
PLAIN = Question("2", "Who?", {"b.md": 1})
NOBODY = Question("3", "Why?", {}, answerable=False)


def answer(
    *cited: tuple[str, int, int], text: str = "The third oar. [1]", model: str | None = None, **usage: int
) -> dict[str, Any]:
    citations = [
        {"number": n, "source": source, "char_start": start, "char_end": end, "quote": text}
        for n, (source, start, end) in enumerate(cited, 1)
    ]
    verdict = "grounded" if cited else "no_answer"
    return {
        "answer": text if cited else NO_ANSWER,
        "citations": citations,
        "verdict": verdict,
        "answerer": "x",
        "usage": usage,
        "model": model,
    }


def of(question: Question, reply: dict[str, Any], took: float = 10.0) -> Answered:
    return answered(question, reply, took, {}, PRICES)


def test_citations_are_compared_with_the_expected_places() -> None:
    cited = (("a.md", 0, 10), ("a.md", 0, 11), ("a.md", 19, 30), ("a.md", 20, 30), ("b.md", 10, 20))
    assert of(SPANNED, answer(*cited)).right == [False, True, True, False, False]
    assert of(PLAIN, answer(*cited)).right == [False, False, False, False, True]
    assert of(NOBODY, answer(*cited)).right == [False] * 5
    assert answered(PLAIN, answer(("b-7.md", 0, 1)), 1.0, {"b-7.md": "b.md"}, PRICES).right == [True]


def test_the_summary_of_answers() -> None:
    run = Answers(
        "l",
        "s",
        [
            of(
                SPANNED,
                answer(
                    ("a.md", 12, 15),
                    ("c.md", 0, 5),
                    model="claude-haiku-5-5",
                    input_tokens=1000,
                    output_tokens=100,
                    cache_read_input_tokens=2000,
                ),
            ),
            of(PLAIN, answer(), 20.0),
            of(NOBODY, answer(), 30.0),
            of(NOBODY, answer(("a.md", 0, 5)), 40.0),
        ],
    )
    summary = run.summary()
    latency = {name: summary.pop(name) for name in ("latency p50 ms", "latency p95 ms")}
    assert latency == {"latency p50 ms": 25.0, "latency p95 ms": pytest.approx(38.5)}
    assert summary == {
        "citation precision": 1 / 3,
        "citation recall": 0.5,
        "answer F1": 1.0,
        "refusal precision": 0.5,
        "refusal recall": 0.5,
        "false refusals": 0.5,
        "grounded answers": 2,
        "quoted answers": 0,
        "partial answers": 0,
        "no_answer answers": 2,
        "input tokens": 3000,
        "output tokens": 100,
        "dollars": pytest.approx((1000 * 0.1 + 2000 * 0.01 + 100 * 0.5) / 1e6),
    }
    assert (run.measure, run.scores()) == ("citation recall", [1.0, 0.0])
    unknown = Answers("l", "s", [of(NOBODY, answer(("a.md", 0, 5), model="my-model", input_tokens=1))])
    assert (unknown.measure, unknown.scores()) == ("refusal recall", [0.0])
    assert unknown.summary()["dollars"] is None
    assert unknown.summary()["refusal precision"] is None, "nothing was refused"
    own = answered(
        NOBODY, answer(("a.md", 0, 5), model="my-model", input_tokens=500_000), 1.0, {}, {"my-model": Price(2)}
    )
    assert (own.dollars, own.tokens) == (1.0, Tokens(500_000))


def test_figures_are_formatted() -> None:
    assert report.figure("input tokens", 12345.0) == "12,345"
    assert report.figure("grounded answers", -2.0, True) == "-2"
    assert report.figure("dollars", 0.00123) == "0.0012"
    assert report.change("dollars", [0.5, 0.25]) == "-0.2500"
    assert report.change("dollars", [None, 0.25]) == "–"


def test_the_report_of_answers() -> None:
    runs = [
        Answers("top_k=3", "s", [of(SPANNED, answer(("a.md", 12, 15))), of(PLAIN, answer()), of(NOBODY, answer())]),
        Answers("top_k=8", "s", [of(SPANNED, answer(("c.md", 1, 5))), of(PLAIN, answer()), of(NOBODY, answer())]),
    ]
    text = report.page("q.jsonl", runs, significance.compare(*runs), ["note"])
    assert "<h1>Answers: q.jsonl</h1>" in text
    assert text.count("<details") == 3
    assert text.count('class="passage relevant"') == 1
    assert text.count('class="question missed worse"') == 1
    assert text.count('class="question missed"') == 1
    assert text.count("Right: Behind the oar.") == 2
    assert text.count("Nothing answers it.") == 2
    assert "citation recall: B − A = -.500" in text
    plain = Tags(text)
    question = Question("1", HOSTILE, {HOSTILE: 1}, answers=(HOSTILE,))
    bad = [
        Answers(HOSTILE, HOSTILE, [of(question, answer((source, 0, 1), text=HOSTILE)), of(NOBODY, answer())])
        for source in (HOSTILE, "b")
    ]
    hostile = Tags(report.page(HOSTILE, bad, significance.compare(*bad), [HOSTILE]))
    assert hostile.tags <= plain.tags
    assert hostile.attributes <= plain.attributes


# --- the real system -------------------------------------------------------------------------------------------------


def run(system: System, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    env = system.env | {"ASKFOLDER_URL": f"http://127.0.0.1:{system.port}", "ASKFOLDER_KEY": KEY}
    result = subprocess.run(
        [ROOT / "askfolder", "eval", *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        check=False,
    )
    assert result.returncode == code, result.stderr
    return result


def test_answers_of_a_running_system_are_measured(system: System, tmp_path: Path) -> None:
    (system.folder / "boathouse.md").write_text(OAR)
    (system.folder / "heron.md").write_text(HERON)
    start = OAR.index("The key")
    rows: list[dict[str, Any]] = [
        {
            "id": "key",
            "question": "Where does the key hang?",
            "spans": {"boathouse.md": [[start, start + 35]]},
            "answer": "behind the third oar",
        },
        {
            "id": "name",
            "question": "What is the heron called?",
            "relevant": ["heron.md"],
            "spans": {"heron.md": [[13, 41]]},
            "answer": ["Balduin", "It's called Balduin"],
        },
        {"id": "wrong", "question": "What does a lost oar cost?", "spans": {"heron.md": [[0, 5]]}},
        {"id": "comet", "question": "Which planet has the longest comet tail?", "answerable": False},
    ]
    questions, page = tmp_path / "questions.jsonl", tmp_path / "report.html"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with AnthropicStandin() as standin:
        env = {"ANTHROPIC_API_KEY": "k", "ANTHROPIC_BASE_URL": standin.url, "ANTHROPIC_MODEL": "claude-haiku-5-5"}
        system.start("web", "worker", "producer", **env)
        system.settled(2)
        found = json.loads(run(system, str(questions), "--answers", "--json").stdout)
        (side,) = found["runs"]
        summary = side["summary"]
        by_id = {row["id"]: row for row in side["questions"]}
        assert any(by_id["key"]["right"])
        assert any(by_id["name"]["right"])
        assert not any(by_id["wrong"]["right"])
        assert by_id["comet"]["verdict"] == "no_answer"
        assert summary["citation recall"] == pytest.approx(2 / 3)
        assert (summary["refusal precision"], summary["refusal recall"], summary["false refusals"]) == (1, 1, 0)
        assert 0 < summary["citation precision"] < 1
        assert 0 < summary["answer F1"] < 1
        spent = sum(row["usage"]["input_tokens"] for row in by_id.values() if row["usage"])
        assert summary["input tokens"] == spent > 0
        assert summary["dollars"] > 0
        assert by_id["key"]["answerer"] == "claude"

        sides = run(system, str(questions), "--answers", "--compare", "top_k=1", "--report", str(page)).stdout
        assert "A: 4 questions, as it is set up: 2 documents" in sides
        assert "B: 4 questions, top_k=1: 2 documents" in sides
        assert "citation recall: B − A = " in sides
        assert "the same for " in sides
        assert " wrong       grounded   wrong  What does a lost oar cost?  (boathouse.md)" in sides
        assert page.read_text().count("<details") == 4
    assert system.call("GET", "/questions")["questions"] == [], "nobody asked these"

    retrieval = run(system, str(questions))
    assert "3 questions, mode=hybrid top_k=100" in retrieval.stdout
    assert "1 unanswerable questions were left out" in retrieval.stderr
    refused = run(system, str(questions), "--answers", "--with", "weight=0.5", code=1)
    assert "The question key could not be asked: weight: " in refused.stderr
