"""`askfolder eval`: measures, question sets, significance, the report; and the project's own questions."""

import gzip
import json
import os
import re
import signal
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from shared.cli.commands import cli
from shared.errors import PermanentError
from shared.evaluation import measures, question_sets, report, significance, temporary
from shared.evaluation import run as experiment
from shared.evaluation.question_sets import Question, Result, Run
from shared.providers.choice import LOCAL_MODEL
from shared.settings import ROOT
from tests.conftest import KEY, System, until

# --- measures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ranking", "relevant", "expected"),
    [
        ("b x a y", {"a": 3, "b": 1}, [1, 1, 1, 0.6885288809404666, 1]),
        ("x y z v w a", {"a": 1, "b": 2}, [0, 0.5, 0.5, 0.13539213147917573, 1 / 6]),
        ("d e f c x y z u v w t a", {"a": 4, "b": 3, "c": 2, "d": 1}, [0.5, 0.5, 0.75, 0.25416287345420985, 1]),
        ("", {"a": 1}, [0, 0, 0, 0, 0]),
    ],
)
def test_measures_equal_those_of_ir_measures(ranking: str, relevant: dict[str, int], expected: list[float]) -> None:
    """Compare with the values of ir-measures 0.4.3 (R@5, R@10, R@20, nDCG@10, RR@10 by pytrec_eval)."""
    found = measures.measures(ranking.split(), relevant)
    assert list(found) == ["recall@5", "recall@10", "recall@20", "nDCG@10", "MRR@10"]
    assert list(found.values()) == pytest.approx(expected, abs=1e-9)


def test_measures_of_questions_with_exact_places(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text('{"question": "a", "spans": {"a.md": [[10, 20], [15, 30]], "b.md": [[0, 20]]}}')
    (question,) = question_sets.read_questions(path)
    assert question.relevant == {"a.md": 1, "b.md": 1}
    places = [("a.md", 0, 15), ("a.md", 12, 20), ("c.md", 0, 20), ("x", 0, 1), ("x", 1, 2), ("b.md", 0, 20)]
    found = measures.covered(places, question.spans)  # the sixth passage doesn't count
    assert found == {"span recall@5": 10 / 40, "span precision@5": 10 / 42}
    values = Result(question, ["a.md"], [], 1.0, 1.0, places).values
    assert values["span recall@5"] == 10 / 40
    runs = [Run("", "", [Result(question, ["a.md"], [], 1.0, 1.0, p)]) for p in (places, places[:1])]
    assert significance.compare(*runs).measure == "span recall@5"
    assert significance.compare(*runs).losses == 1


def test_the_difference_of_equal_and_of_consistently_better_runs() -> None:
    same = significance.difference([0.5] * 40, [0.5] * 40)
    assert (same.p, same.mean, same.low, same.high, same.ties) == (1.0, 0, 0, 0, 40)
    better = significance.difference([0.2] * 40, [0.3] * 40)
    assert better.p == pytest.approx(1 / 10_001)
    assert (better.wins, better.losses) == (40, 0)
    assert better.low == pytest.approx(0.1)
    assert significance.difference([0.3] * 40, [0.2] * 40).mean == pytest.approx(-0.1)


def test_the_p_value_equals_that_of_all_swaps() -> None:
    """With eight pairs, all 256 swaps can be enumerated."""
    a = [0.1, 0.4, 0.3, 0.9, 0.5, 0.2, 0.7, 0.6]
    b = [0.3, 0.5, 0.2, 0.95, 0.9, 0.25, 0.6, 0.9]
    moved = np.subtract(b, a)
    signs = 1 - 2 * ((np.arange(256)[:, None] >> np.arange(8)) & 1)
    exact = float((np.abs(signs @ moved) >= abs(moved.sum()) - 1e-9).mean())
    found = significance.difference(a, b)
    assert found.p == pytest.approx(exact, abs=0.015)
    assert found.low < found.mean < found.high
    assert significance.difference(a, b) == found, "the seed is fixed"


def test_random_differences_are_rarely_significant() -> None:
    generator = np.random.default_rng(7)
    hits = sum(significance.difference(*generator.random((2, 30))).p < 0.05 for _ in range(100))
    assert 0 <= hits <= 12


# --- reading ---------------------------------------------------------------------------------------------------------


def test_question_sets_are_read(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(
        '\ufeff{"question": " When? ", "relevant": ["a.md", "b/ö.md"]}\n\n'
        '{"id": "two", "question": "Who?", "relevant": {"a.md": 2, "c.md": 0}}\n'
    )
    assert question_sets.read_questions(path) == [
        Question("1", "When?", {"a.md": 1, "b/ö.md": 1}),
        Question("two", "Who?", {"a.md": 2}),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no question"),
        ("{", "line 1 is not JSON"),
        ("[" * 100_000, "line 1 is not JSON"),
        ("\n[]", "line 2 is not a JSON object"),
        ('{"relevant": ["a"]}', 'has no "question"'),
        ('{"question": "a"}', '"relevant" must be'),
        ('{"question": "a", "relevant": {"a": "much"}}', '"relevant" must be'),
        ('{"question": "a", "relevant": []}', "names no relevant document"),
        ('{"question": "a", "relevant": {"a": 0}}', "names no relevant document"),
        ('{"question": "a", "spans": {"a": [[3, 3]]}}', '"spans" must be'),
        ('{"question": "a", "spans": [1]}', '"spans" must be'),
        (
            '{"question": "a", "relevant": ["a"]}\n{"question": "b", "spans": {"a": [[0, 1]]}}',
            "spans for all questions, or for none",
        ),
        ('{"id": 1, "question": "a", "relevant": ["a"]}\n' * 2, "the id 1 twice"),
        ('{"question": "a", "relevant": ["a"], "answer": [1]}', '"answer" must be'),
        ('{"question": "a", "relevant": ["a"], "answerable": false}', '"answerable" must be'),
        ('{"question": "a", "relevant": ["a"], "answerable": "no"}', '"answerable" must be'),
    ],
)
def test_invalid_questions_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(text)
    with pytest.raises(PermanentError, match=re.escape(words)):
        question_sets.read_questions(path)


def beir(folder: Path, qrels: str = "query-id\tcorpus-id\tscore\nq1\tHe/ron ~\t2\nq1\tnone\t0\nq9\td2\t1\n") -> Path:
    (folder / "qrels").mkdir(parents=True)
    corpus = [
        {"_id": "He/ron ~", "title": "The\nheron", "text": "It is called Balduin."},
        {"_id": "d2", "title": "", "text": "# not a heading\nThe stork is called Adele."},
        {"_id": "3", "text": ""},
    ]
    with gzip.open(folder / "corpus.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in corpus)
    (folder / "queries.jsonl").write_text(
        '{"_id": "q0", "text": "unjudged"}\n{"_id": "q1", "text": "What is the heron called?"}\n'
    )
    (folder / "qrels/test.tsv").write_text(qrels)
    return folder


def test_a_folder_in_the_beir_layout_is_read(tmp_path: Path) -> None:
    folder = beir(tmp_path / "set")
    assert question_sets.read_beir(folder) == [Question("q1", "What is the heron called?", {"He/ron ~": 2})]
    target = tmp_path / "documents"
    ids = temporary.write_corpus(folder, target)
    files = {ids[path.name]: path for path in target.iterdir()}
    assert {name: path.suffix for name, path in files.items()} == {"He/ron ~": ".md", "d2": ".txt", "3": ".txt"}
    assert files["He/ron ~"].read_text() == "# The heron\n\nIt is called Balduin.\n"
    before = {path: path.stat().st_mtime_ns for path in files.values()}
    (target / "left-over.md").write_text("of an earlier corpus")
    assert temporary.write_corpus(folder, target) == ids
    assert {path: path.stat().st_mtime_ns for path in target.iterdir()} == before, "what is right already stays"


@pytest.mark.parametrize(
    ("qrels", "words"),
    [
        ("", "names no relevant document"),
        ("query-id\tcorpus-id\tscore\n", "names no relevant document"),
        ("a\tb\tc\nq1\td2\tmuch\n", "line 2 must be query-id"),
        ("a b c\nq1 d2 1\n", "line 2 must be query-id"),
        ("a\tb\tc\nq7\td2\t1\n", "is among those"),
    ],
)
def test_invalid_qrels_are_refused(tmp_path: Path, qrels: str, words: str) -> None:
    with pytest.raises(PermanentError, match=words):
        question_sets.read_beir(beir(tmp_path / "set", qrels))


def test_broken_archives_are_refused(tmp_path: Path) -> None:
    folder = beir(tmp_path / "set")
    corpus = folder / "corpus.jsonl.gz"
    for content in (corpus.read_bytes()[:-12], b"not gzip"):
        corpus.write_bytes(content)
        with pytest.raises(PermanentError, match="cannot be read"):
            list(question_sets.read_corpus(folder))
    corpus.unlink()
    with pytest.raises(PermanentError, match="does not exist"):
        list(question_sets.read_corpus(folder))


def test_file_names_are_safe_and_unique() -> None:
    names = [
        "a",
        "A",
        "",
        ".",
        "..",
        "~$x",
        "a" * 300,
        "a" * 300 + "b",
        "x.tmp.1",
        "ä",
        "a/b",
        "a-b",
        "a\0b",
        "-",
        "\ud800",
    ]
    files = [temporary.file_name(name) for name in names]
    assert len({file.lower() for file in files}) == len(names)
    assert all(re.fullmatch("[a-z0-9][a-z0-9_-]{0,99}", file) for file in files), files


def test_documents_are_gathered_in_one_folder(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/a.md").write_text("a")
    (tmp_path / "readme.md").write_text("r")
    target = tmp_path / "work/documents"
    target.parent.mkdir()
    assert temporary.gather([tmp_path / "docs"], target) == tmp_path / "docs"
    for text in ("a", "changed, and longer"):
        (tmp_path / "docs/a.md").write_text(text)
        assert temporary.gather([tmp_path / "docs", tmp_path / "readme.md"], target) == target
        files = {str(p.relative_to(target)): p.read_text() for p in target.rglob("*") if p.is_file()}
        assert files == {"docs/a.md": text, "readme.md": "r"}
    with pytest.raises(PermanentError, match="does not exist"):
        temporary.gather([tmp_path / "nowhere"], target)


def test_a_kept_folder_of_other_documents_is_refused(tmp_path: Path) -> None:
    for _ in range(2):
        with temporary.workplace(tmp_path / "kept", "these"):
            pass
    with pytest.raises(PermanentError, match="of these, not of those"), temporary.workplace(tmp_path / "kept", "those"):
        pass
    with pytest.raises(PermanentError, match="holds other files"), temporary.workplace(tmp_path, "these"):
        pass


# --- arguments -------------------------------------------------------------------------------------------------------


def test_a_choice_is_changed_by_arguments() -> None:
    first = experiment.Choice({"mode": "hybrid", "top_k": 100})
    other = first.changed("mode=dense top_k=20 filters.source='a b/' OPENAI_API_KEY=sk-1 ASKFOLDER_EMBEDDER=openai")
    assert other.body(query="q", top_k=1) == {"query": "q", "mode": "dense", "top_k": 1, "filters": {"source": "a b/"}}
    assert other.settings == {"OPENAI_API_KEY": "sk-1", "ASKFOLDER_EMBEDDER": "openai"}
    assert "sk-1" not in other.label()
    assert first.label() == "mode=hybrid top_k=100"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere.jsonl"], 1, "nowhere.jsonl does not exist"),
        (["{set}", "--documents", "."], 2, "its own documents"),
        (["{questions}", "--temporary"], 2, "--documents"),
        (["{questions}", "--compare", "dense"], 2, "not NAME=VALUE"),
        (["{questions}", "--compare", "mode='"], 2, "cannot be parsed"),
        (["{questions}", "--compare", "ASKFOLDER_EMBEDDER=openai"], 2, "--temporary"),
        (["{questions}", "--documents", "{set}", "--with", "ASKFOLDER_COLOUR=red"], 1, "there is no such setting"),
        (["{questions}", "--documents", "{set}", "--with", "ASKFOLDER_CONCURRENCY=many"], 1, "ASKFOLDER_CONCURRENCY"),
        (["{questions}", "--documents", "{set}", "--with", "ASKFOLDER_PORT=1"], 1, "uses its own"),
        (["{questions}", "--report", "/nowhere/r.html"], 1, "is not a folder"),
        (["{questions}", "--limit", "0"], 2, "--limit"),
        (["{questions}", "--answers", "--mode", "dense"], 2, "no search mode"),
        (["{nothing}"], 1, "--answers"),
        (["{questions}"], 4, "make up"),
    ],
)
def test_invalid_arguments_are_refused_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, words: str
) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question": "When?", "relevant": ["a.md"]}')
    nothing = tmp_path / "nothing.jsonl"
    nothing.write_text('{"question": "When?", "answerable": false}')
    folder = beir(tmp_path / "set")
    monkeypatch.setattr(experiment, "load", lambda: experiment_settings(tmp_path))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    result = CliRunner().invoke(
        cli, ["eval", *(a.format(set=folder, questions=questions, nothing=nothing) for a in arguments)]
    )
    assert (result.exit_code, words in result.output) == (code, True), result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)


def experiment_settings(folder: Path) -> Any:
    from shared.settings import read

    return read({"ASKFOLDER_URL": "http://127.0.0.1:1", "ASKFOLDER_KEY": "k", "ASKFOLDER_DATA": str(folder)})


# --- the report ------------------------------------------------------------------------------------------------------

HOSTILE = "</p><script>alert(1)</script><img src=x onerror=alert(1)>\"'&amp;\0\x1b[31m\u202e\ud800"


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def run_of(*rankings: str, text: str = "some text", label: str = "mode=hybrid") -> Run:
    results = []
    for number, ranking in enumerate(rankings):
        names = ranking.split()
        passages = [
            {"source": n, "content": text, "heading": [text], "page": None, "score": 0.5, "title": text} for n in names
        ]
        results.append(Result(Question(f"q{number}", text, {"a": 2, "z": 1}), names, passages, 12.0 + number, 3.0))
    return Run(label, "3 documents, local m (4)", results)


def test_the_report_contains_the_results() -> None:
    runs = [run_of("x a", "b c"), run_of("a x", "b c", label="mode=dense")]
    difference = significance.compare(runs[0], runs[1])
    text = report.page("questions.jsonl", runs, difference, ["2 documents could not be read."])
    assert text.count('class="passage relevant"') == 2
    assert "z (not found)" in text
    assert text.count("<details") == 2
    assert 'class="question better incomplete"' in text
    assert 'class="question incomplete missed"' in text
    assert "2 documents could not be read." in text
    assert "mode=dense" in text
    assert text.startswith("<!doctype html>")
    assert report.page("q", runs[:1], None, []).count('class="passage relevant"') == 1


def test_the_report_escapes_html() -> None:
    plain = Tags(report.page("t", [run_of("a b"), run_of("b")], significance.difference([0], [1]), ["note"]))
    runs = [run_of("a <b>", text=HOSTILE, label=HOSTILE), run_of("<script>", text=HOSTILE, label=HOSTILE)]
    text = report.page(HOSTILE, runs, significance.difference([0], [1]), [HOSTILE])
    hostile = Tags(text)
    assert hostile.tags == plain.tags
    assert hostile.attributes == plain.attributes
    assert not hostile.tags & {"script", "img", "a", "link", "iframe"}
    assert not re.search("[\0\x1b\u202e]", text)
    text.encode()
    assert "default-src 'none'" in text
    assert "://" not in text, "nothing from elsewhere"


def test_figures_are_formatted() -> None:
    assert [report.figure("recall@5", v) for v in (0, 0.5, 1, 0.0004)] == [".000", ".500", "1.000", ".000"]
    assert [report.figure("", v, True) for v in (0.25, -0.25, -0.0001)] == ["+.250", "-.250", ".000"]
    assert report.figure("latency p50 ms", 12.6) == "13"
    for took in (0.01, 1e6):
        runs = [Run("l", "s", [Result(Question("1", "q", {"a": 1}), [], [], took, 0.0)])]
        assert "Nothing was found" in report.page("t", runs, None, [])


# --- the real system -------------------------------------------------------------------------------------------------


@pytest.fixture
def environment(tmp_path: Path, model: Path) -> dict[str, str]:
    data = tmp_path / "checkout-data"
    (data / "models").mkdir(parents=True)
    (data / LOCAL_MODEL).symlink_to(model)
    ours = ("ASKFOLDER_", "ANTHROPIC_", "OPENAI_", "VOYAGE_", "DATABASE_URL", "REDIS_URL")
    return {n: v for n, v in os.environ.items() if not n.startswith(ours)} | {
        "ASKFOLDER_DATA": str(data),
        "TMPDIR": str(tmp_path),
    }


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "askfolder", "eval", *arguments], env=environment, capture_output=True, text=True, timeout=120, cwd=ROOT
    )


def test_retrieval_on_our_own_documents(environment: dict[str, str], tmp_path: Path) -> None:
    """Check the minimum quality of retrieval on our own documents."""
    page = tmp_path / "report.html"
    result = run(
        environment,
        "eval/docs.jsonl",
        "--documents",
        "README.md",
        "--documents",
        "docs",
        "--compare",
        "mode=lexical",
        "--json",
        "--report",
        str(page),
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    summary, words = (side["summary"] for side in found["runs"])
    assert summary["recall@5"] >= 0.85, summary
    assert summary["nDCG@10"] >= 0.8, summary
    assert summary["nDCG@10"] >= words["nDCG@10"] - 0.05
    assert found["difference"]["wins"] + found["difference"]["losses"] + found["difference"]["ties"] == 30
    assert page.read_text().count("<details") == 30
    assert list(tmp_path.glob("askfolder-eval-*")) == [], "the temporary system is removed"


def test_a_kept_folder_is_used_again(environment: dict[str, str], tmp_path: Path) -> None:
    folder, kept = beir(tmp_path / "set"), tmp_path / "kept"
    for n in range(2):
        result = run(environment, str(folder), "--keep", str(kept))
        assert result.returncode == 0, result.stderr
        assert re.search(r"^nDCG@10 +1\.000$", result.stdout, re.M), result.stdout
        assert "1 documents could not be read" in result.stderr
        lines = (kept / "data/logs/worker.log").read_text().splitlines()
        taken = [line for line in lines if "received" in line]
        assert len(taken) == 3, f"run {n} indexes what is new only: {taken}"


def test_a_running_system_is_evaluated(system: System, environment: dict[str, str], tmp_path: Path) -> None:
    (system.folder / "storch.md").write_text("# Stork\n\nThe stork is called Adele.")
    system.start("web", "worker", "producer")
    system.settled(1)
    environment |= {"ASKFOLDER_URL": f"http://127.0.0.1:{system.port}", "ASKFOLDER_KEY": KEY}
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question": "What is the stork called?", "relevant": ["storch.md"]}')
    right = run(environment, str(questions), "--compare", "mode=lexical top_k=5")
    assert right.returncode == 0, right.stderr
    assert "A: 1 questions, mode=hybrid top_k=100: 1 documents, local all-MiniLM-L6-v2-int8 (384)" in right.stdout
    assert "B is better for 0 questions, worse for 0, the same for 1." in right.stdout
    unknown = run(environment, str(questions), "--with", "colour=red")
    assert unknown.returncode == 1
    assert "The question 1 could not be asked: colour: " in unknown.stderr
    questions.write_text('{"question": "What is the stork called?", "relevant": ["stork.md"]}')
    wrong = run(environment, str(questions))
    assert wrong.returncode == 1
    assert "'stork.md', which is not in the index; there is 'storch.md'" in wrong.stderr
    assert "Traceback" not in right.stderr + unknown.stderr + wrong.stderr


def test_an_interrupted_evaluation_leaves_nothing_behind(environment: dict[str, str], tmp_path: Path) -> None:
    import psutil

    folder = beir(tmp_path / "set")
    process = subprocess.Popen([ROOT / "askfolder", "eval", str(folder)], env=environment, start_new_session=True)
    family: set[psutil.Process] = set()

    def running() -> bool:
        family.update(psutil.Process(process.pid).children(recursive=True))
        return len(family) > 4

    until(running, 30)
    process.send_signal(signal.SIGTERM)
    process.wait(30)
    until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family), 10)
    assert list(tmp_path.glob("askfolder-eval-*")) == []
