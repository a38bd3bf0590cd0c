"""Quoted answers. docs/answers.md has the accuracy on public questions, and bench/extractive.py measures it.

The public questions do not use the documents of this file. These were read while the module was written, so they only
guard against changes; nothing was fitted to this project's own documents.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from api.answering import extractive
from api.answering.extractive import Vectors, extract
from api.verification.citations import Draft, Span
from bench import extractive as fitting
from bench.extractive import Case, Collection, by_document, fit, read, refused
from shared.evaluation.question_sets import Question, read_questions
from shared.models import Passage
from shared.providers.local import LocalEmbedder
from worker.indexing.chunking import chunk
from worker.parsing.child import parse_file

ROOT = Path(__file__).parents[2]

DOCUMENTS = {
    "welcome.txt": """\
Welcome to Harbour Street Studios!

Your desk is on the third floor, next to the kitchen. The door code is 4471; it changes on the first Monday \
of each month.
The wireless network is called HarbourGuest and its password hangs beside the printer.
Lunch is served from noon to half past one. Tell Priya if you eat no meat.
Everybody has 28 days of paid holiday a year. Ask your team lead at least two weeks ahead.
""",
    "README.md": """\
# Pelican

Pelican copies folders between machines and keeps them the same. It needs Python 3.9 or newer and runs on Linux \
and macOS.

## Installation

Install it from the package index:

```
pip install pelican-sync
```

## Configuration

| setting | default | meaning |
| --- | --- | --- |
| interval | 60 | seconds between two comparisons |
| workers | 4 | files that are copied at once |
| keep | 30 | days that deleted files are kept |

Settings are read from `~/.pelican.toml`. A file larger than 2 GB is copied in parts of 64 MB.

## Licence

Pelican is published under the MIT licence.
""",
    "docs/returns.html": """\
# Returns and refunds

You can send back an item within 30 days of delivery. Shoes must not have been worn outside.
Refunds are paid to the card that was used, usually within five working days.
We pay for the return label if the item was damaged. Gift cards cannot be returned.

# Shipping

Orders above 50 euros are shipped free of charge. Express delivery costs 12 euros and takes one day.
""",
    "report-2023.pdf": """\
Northwind Cooperative, annual report 2023

Revenue rose by 14 percent to 8.2 million euros, mainly because of the new bakery in Leeds.
The cooperative employed 112 people at the end of the year, nine more than a year before.
Energy costs fell after solar panels were put on the roof of the warehouse in March.
The board proposes to pay no dividend and to put 600,000 euros into the reserve.
The general meeting elected Amara Okafor as chair; she follows Tom Lindqvist, who retired.
""",
    "protokoll.docx": """\
# Protokoll der Vereinssitzung

Die Sitzung fand am 12. Mai im Rathaus statt. Anwesend waren 23 Mitglieder.
Der Mitgliedsbeitrag steigt ab Januar auf 48 Euro im Jahr.
Zur neuen Kassenwartin wurde Helga Brandt gewählt.
Das Sommerfest wird am 6. Juli auf der Wiese hinter der Schule gefeiert.
""",
}
ANSWERS = [
    ("What is the door code?", "welcome.txt", "4471"),
    ("How many days of holiday do I get?", "welcome.txt", "28 days"),
    ("When is lunch?", "welcome.txt", "noon"),
    ("What is the name of the wifi network?", "welcome.txt", "HarbourGuest"),
    ("Where is my desk?", "welcome.txt", "third floor"),
    ("How do I install Pelican?", "README.md", "pip install pelican-sync"),
    ("Which Python version does Pelican need?", "README.md", "3.9"),
    ("What is the default of the interval setting?", "README.md", "60"),
    ("Under which licence is Pelican published?", "README.md", "MIT"),
    ("How long are deleted files kept?", "README.md", "30"),
    ("How long do I have to return an item?", "docs/returns.html", "30 days"),
    ("What does express delivery cost?", "docs/returns.html", "12 euros"),
    ("Can I return a gift card?", "docs/returns.html", "cannot be returned"),
    ("When do I get my refund?", "docs/returns.html", "five working days"),
    ("How much did revenue grow in 2023?", "report-2023.pdf", "14 percent"),
    ("How many people work for the cooperative?", "report-2023.pdf", "112"),
    ("Who was elected chair?", "report-2023.pdf", "Amara Okafor"),
    ("Why did energy costs fall?", "report-2023.pdf", "solar panels"),
    ("Wie hoch ist der Mitgliedsbeitrag?", "protokoll.docx", "48 Euro"),
    ("Wann ist das Sommerfest?", "protokoll.docx", "6. Juli"),
    ("Wer wurde zur Kassenwartin gewählt?", "protokoll.docx", "Helga Brandt"),
]
NOWHERE = [
    "What is the capital of Mongolia?",
    "Who won the 1998 World Cup?",
    "How do I bake sourdough?",
    "What is the boiling point of nitrogen?",
    "Who wrote Crime and Punishment?",
    "How tall is Mount Kilimanjaro?",
    "Wie funktioniert ein Dieselmotor?",
    "Wer schrieb den Zauberberg?",
    "Does Pelican encrypt files with a passphrase?",
    "How do I connect Pelican to Amazon S3?",
    "What is the salary of a senior engineer?",
    "Is there a parking garage for bicycles?",
    "What was the revenue of Contoso in 1987?",
]
OWN = ["README.md", "docs/operations.md", "docs/formats.md", "docs/settings.md", "docs/performance.md"]
ELSEWHERE = [
    "Who painted the ceiling of the Sistine Chapel?",
    "What causes the northern lights?",
    "How many moons does Jupiter have?",
    "When did the Berlin Wall fall?",
    "What does a notary charge for a house purchase?",
    "How long do hard-boiled eggs keep in the refrigerator?",
    "Which vitamins are in spinach?",
    "Who is the head coach of the Chicago Bulls?",
    "How do vaccines protect against measles?",
    "What is the tallest building in Dubai?",
    "How is parmesan cheese made?",
    "When should tomatoes be planted outdoors?",
    "What is the notice period in a rental contract?",
    "How do I change the oil of a motorcycle?",
    "Which treaty ended the Thirty Years' War?",
    "What is the average rainfall in the Amazon?",
    "Who composed the opera Carmen?",
    "How many players are in a volleyball team?",
    "Wann wurde die Dresdner Frauenkirche wieder aufgebaut?",
    "Wie lange muss ein Hefeteig gehen?",
]


def passages() -> list[Passage]:
    found: list[Passage] = []
    for number, (source, text) in enumerate(DOCUMENTS.items(), 1):
        start = 0
        for part in text.split("\n\n## ") if source == "README.md" else [text]:
            start = text.index(part, start)
            found.append(passage(part, source, number, start, len(found)))
    return found


def passage(content: str, source: str = "a.txt", document_id: int = 1, start: int = 0, chunk_id: int = 1) -> Passage:
    return Passage(chunk_id, document_id, source, None, content, 1.0, None, (), start, start + len(content))


@pytest.fixture(scope="module")
def embed(model: Path) -> Callable[[Sequence[str]], Vectors]:
    """Embed every text once."""
    embedder = LocalEmbedder(model)
    known: dict[str, Vectors] = {}

    def vectors(texts: Sequence[str]) -> Vectors:
        if fresh := [text for text in dict.fromkeys(texts) if text not in known]:
            known.update(zip(fresh, embedder.embed(fresh), strict=True))
        return np.stack([known[text] for text in texts])

    return vectors


def quotes(draft: Draft) -> list[str]:
    return [claim.quote for statement in draft.statements for claim in statement.claims]


def ranked(question: str, embed: Callable[[Sequence[str]], Vectors]) -> list[Passage]:
    found = passages()
    cosines = embed([one.content for one in found]) @ embed([question])[0]
    return [found[index] for index in np.argsort(-cosines)]


@pytest.mark.parametrize(("question", "source", "words"), ANSWERS)
def test_known_questions_are_answered(
    question: str, source: str, words: str, embed: Callable[[Sequence[str]], Vectors]
) -> None:
    found = ranked(question, embed)
    claims = [claim for statement in extract(question, found, embed).statements for claim in statement.claims]
    assert 1 <= len(claims) <= extractive.QUOTES
    assert found[claims[0].passage].source == source
    assert words in claims[0].quote
    for claim in claims:
        text = DOCUMENTS[found[claim.passage].source]
        assert text[claim.char_start : claim.char_end] == claim.quote


@pytest.mark.parametrize("question", NOWHERE)
def test_unanswerable_questions_are_refused(question: str, embed: Callable[[Sequence[str]], Vectors]) -> None:
    assert extract(question, ranked(question, embed), embed) == Draft()


# With vectors that carry no meaning, words alone decide


def flat(texts: Sequence[str]) -> Vectors:
    return np.tile(np.array([0.6, 0.8], np.float32), (len(texts), 1))


def own_passages(embedder: LocalEmbedder) -> list[Passage]:
    """Return the chunks of some of this project's own documents."""
    found: list[Passage] = []
    for number, source in enumerate(OWN):
        parsed = parse_file(str(ROOT / source), source, 1_000_000)
        for one in chunk(parsed, embedder.count, 200):
            found.append(
                Passage(
                    len(found),
                    number,
                    source,
                    None,
                    one.content,
                    1.0,
                    None,
                    one.heading_path,
                    one.char_start,
                    one.char_end,
                )
            )
    return found


def test_accuracy_on_documents_that_were_not_used_for_fitting(
    model: Path, embed: Callable[[Sequence[str]], Vectors]
) -> None:
    """Ask the questions of eval/docs.jsonl on some of this project's own documents, with the current numbers."""
    found = own_passages(LocalEmbedder(model))
    vectors = embed([one.content for one in found])

    def sources(question: str) -> list[str]:
        best = [found[index] for index in np.argsort(-(vectors @ embed([question])[0]))[: extractive.PASSAGES]]
        claims = [claim for statement in extract(question, best, embed).statements for claim in statement.claims]
        for claim in claims:
            text = (ROOT / best[claim.passage].source).read_text()
            assert text[claim.char_start : claim.char_end] == claim.quote
        return [best[claim.passage].source for claim in claims]

    questions = [q for q in read_questions(ROOT / "eval" / "docs.jsonl") if q.relevant.keys() <= set(OWN)]
    assert len(questions) > 15
    answers = [sources(question.text) for question in questions]
    right = [bool(question.relevant.keys() & set(given)) for question, given in zip(questions, answers, strict=True)]
    assert np.mean(right) >= 0.6
    # 6 of 18 when this test was written: the questions are short and vague.
    assert np.mean([not given for given in answers]) <= 0.34
    assert np.mean([not sources(question) for question in ELSEWHERE]) >= 0.9


def test_without_sentences_nothing_is_quoted() -> None:
    assert extract("Who?", [], flat) == Draft()
    assert extract("Who?", [passage(" \n")], flat) == Draft()
    assert extract(" ", [passage("Ada wrote it.")], flat) == Draft()


def test_a_question_of_common_words_only_is_refused() -> None:
    """Neither its words nor its meaning give any evidence."""
    assert extract("What is it?", [passage("Ada Frost built the tower.")], flat) == Draft()


def test_one_common_word_of_a_long_question_gives_no_evidence() -> None:
    text = "Ada Frost built the tower. The harbour has two towers. Boats leave at noon."
    assert quotes(extract("Who built the tower?", [passage(text)], flat))[0] == "Ada Frost built the tower."
    question = "Which tower inspector measured radiation near Chernobyl reactors during winter expeditions?"
    assert extract(question, [passage(text)], flat) == Draft()


def test_junk_is_not_quoted() -> None:
    text = "# Tower height\n\n| tower | height |\n| --- | --- |\n| north tower | height 54 m |\n\nTower height\n"
    assert quotes(extract("tower height", [passage(text)], flat)) == ["| north tower | height 54 m |"]
    assert quotes(extract("tower height", [passage("# Tower height")], flat)) == ["# Tower height"]


def test_a_quote_includes_the_list_or_code_that_follows() -> None:
    text = "# Start\n\nStart the pump in this order:\n\n- open the valve\n- press the button\n\nThen go home and rest."
    assert quotes(extract("How do I start the pump?", [passage(text)], flat))[0] == text[9:-24]
    text = "Start the pump with this command:\n```\npump start\n\npump wait\n```\nThen go home and rest."
    assert quotes(extract("How do I start the pump?", [passage(text)], flat))[0] == text[:-23]
    text = "How do I start the pump? Press the green button. It is on the left."
    assert quotes(extract("How do I start the pump?", [passage(text)], flat))[0] == text[:48]


def test_a_long_run_without_capitals_is_quoted_in_parts() -> None:
    text = " ".join(f"the price of item number {n} in the shop by the harbour is {n * 7} euros." for n in range(40))
    (first, *_) = quotes(extract("price of item number 23", [passage(text)], flat))
    assert first == "the price of item number 23 in the shop by the harbour is 161 euros."


def test_equal_sentences_in_two_files_become_one_statement_with_two_citations() -> None:
    both = [passage("The tower is 54 m high.", "a.md", 1), passage("The tower is 54 m high.", "b.md", 2, 100)]
    (statement,) = extract("How high is the tower?", both, flat).statements
    assert statement.text.strip() == "The tower is 54 m high."
    assert statement.claims == (Span(0, 0, 23, both[0].content), Span(1, 100, 123, both[1].content))


def test_overlapping_passages_are_not_quoted_twice() -> None:
    text = "The tower is 54 m high. It stands at the harbour."
    draft = extract("How high is the tower?", [passage(text), passage(text[24:], start=24), passage(text)], flat)
    ranges = sorted((claim.char_start, claim.char_end) for one in draft.statements for claim in one.claims)
    assert ranges == sorted(set(ranges))
    assert all(end <= start for (_, end), (start, _) in pairwise(ranges))


def test_only_the_first_passages_are_read() -> None:
    found = [passage(f"Nothing about it here, number {n}.", document_id=n) for n in range(extractive.PASSAGES)]
    draft = extract("How high is the tower?", [*found, passage("The tower is 54 m high.")], flat)
    assert "The tower is 54 m high." not in quotes(draft)


def test_the_number_of_embedded_sentences_is_limited() -> None:
    """Sentences that share words with the question are embedded from any passage."""
    embedded: list[str] = []

    def embed(texts: Sequence[str]) -> Vectors:
        embedded.extend(texts)
        return flat(texts)

    filling = " ".join(f"Nothing of interest happened on day number {n} at sea." for n in range(200))
    draft = extract("How high is the tower?", [passage(filling + " The tower is 54 m high.")], embed)
    assert quotes(draft)[0] == "The tower is 54 m high."
    assert extractive.READ * 0.9 < sum(map(len, embedded[1:])) <= extractive.READ
    long = "The tower is high, " + "and higher, " * 500 + "at last."
    assert quotes(extract("How high is the tower?", [passage(long)], flat)) == [long]


@pytest.mark.parametrize(
    ("question", "text"),
    [
        ("塔的高度是多少？", "塔的高度是五十四米。它建于1887年。"),
        ("Как высока башня?", "Башня высотой 54 метра. Она стоит у моря."),
        ("How are tickets refunded?", "A ticket is refundable for a week. Bring it along."),
    ],
)
def test_words_are_matched_in_many_languages(question: str, text: str) -> None:
    assert text.startswith(quotes(extract(question, [passage(text)], flat))[0])


def test_hostile_text_gives_no_evidence() -> None:
    found = [
        passage(text) for text in ("a" * 5000, "." * 5000, "? " * 2500, "|-" * 2500, "```\n" * 1250, "# \n" * 1000)
    ]
    assert not extract("How high is the tower?", found, flat).statements
    assert len(extract("a" * 5000 + "? |-", found, flat).statements) <= extractive.QUOTES


# Fitting and held-out documents of bench/extractive.py

FOLDS = [("a", ""), ("a", "b"), ("b", ""), ("b", "a")]


def case(
    kind: str, strength: float, collection: str = "one", subject: str = "a", fold: str = "", name: str = "q"
) -> Case:
    return Case(collection, subject, kind, fold, name, "", (strength, 0.0, 0.0), kind == "answerable", 1, 1)


def test_the_numbers_separate_answerable_from_unanswerable_questions() -> None:
    known = [case("answerable", 2 + n / 100) for n in range(50)] + [case("elsewhere", 1 - n / 100) for n in range(50)]
    numbers = fit(known)
    assert numbers[0] == 1
    assert 1 < -numbers[-1] < 2
    assert not any(refused(one, numbers) != (one.kind == "elsewhere") for one in known)


def test_false_refusals_have_a_cost_and_each_collection_counts_equally(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    known = [case("answerable", 2 + random.normal()) for _ in range(400)]
    known += [case("elsewhere", random.normal()) for _ in range(400)]
    assert -fit(known)[-1] == pytest.approx(1, abs=0.1), "both cost the same"
    monkeypatch.setattr(fitting, "COST", 2.5)
    assert 0.3 < -fit(known)[-1] < 0.9
    weak = [case("answerable", 1 + random.normal(), "two") for _ in range(100)]
    weak += [case("elsewhere", random.normal() - 1, "two") for _ in range(100)]
    assert -fit(known + weak)[-1] == pytest.approx(-fit(known + weak + weak)[-1], abs=0.01)


def test_a_document_is_tested_with_numbers_fitted_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[Case]] = []

    def noted(known: Sequence[Case]) -> npt.NDArray[np.float64]:
        seen.append(list(known))
        return np.array([1.0, 0.0, 0.0, -1.0])

    monkeypatch.setattr(fitting, "fit", noted)
    asked = [Question(name, name, {name: 1}, {name: [(0, 1)]}) for name in "ab"]
    collection = Collection("one", asked, {"a": "a", "b": "b"}, lambda folder: folder)
    known = [case("answerable", 2, subject=name, fold=fold, name=name) for name, fold in FOLDS]
    known += [
        case("elsewhere", 0, subject="x", fold=fold, name=name) for fold in ("", "a", "b") for name in ("x1", "x2")
    ]
    judged = dict(by_document(known, collection))
    for (document, those), fitted in zip(judged.items(), seen, strict=True):
        assert {one.fold for one in fitted} == {document}
        assert document not in {one.subject for one in fitted}
        assert {one.question for one, _ in those}.isdisjoint(one.question for one in fitted)
        assert {one.fold for one, _ in those} == {""}
    assert sorted(one.question for those in judged.values() for one, _ in those) == ["a", "b", "x1", "x2"]


def test_collections_are_read(tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text('{"_id": "0-0", "text": "One."}\n{"_id": "1-0", "text": "Two."}\n')
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "Which?"}\n')
    (tmp_path / "qrels" / "test.tsv").write_text("q\t1-0\t1\n")
    (collection,) = read(str(tmp_path))
    assert [(q.text, list(q.relevant)) for q in collection.questions] == [("Which?", ["1-0.txt"])]
    assert sorted(path.name for path in collection.write(tmp_path).iterdir()) == ["0-0.txt", "1-0.txt"]
    (collection,) = read(f"{ROOT / 'eval' / 'docs.jsonl'}={ROOT}")
    assert (collection.name, collection.subject(collection.questions[0])) == ("docs", "README.md")
