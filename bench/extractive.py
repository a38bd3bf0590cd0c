"""Measure quoted answers on documents that were not used to fit the numbers of the decision.

usage: python -m bench.extractive [--keep FOLDER] [--cases FILE] [COLLECTION …]

COLLECTION: a folder in the BEIR layout, or QUESTIONS.jsonl=FOLDER, where FOLDER has the documents of the questions. The
default is the public collections of ../shared/eval. Each collection is indexed once, in --keep. --cases: write the
evidence of every question as a line of JSON.

Each collection is asked its own questions; the same questions on an index without the answering documents (in xquad
without the article; skipped if other documents may answer too); and questions of unrelated collections. The numbers of
the decision (`fit`) are fitted three times: to all documents of a collection with exact places except one, and tested
on that document; to all collections except one; and to all collections, which gives approximately the numbers in
api/answering/extractive.py.
"""

import argparse
import contextlib
import gzip
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from psycopg import sql

from api import ask
from api.answering import extractive
from api.retrieval import passages, retrieve
from api.retrieval.filters import Filters
from api.retrieval.query import PASSAGES, Query
from api.verification.citations import Verification, resolve
from shared import db
from shared.db import Connection
from shared.errors import AskfolderError
from shared.evaluation.measures import Span
from shared.evaluation.question_sets import Question, read_beir, read_corpus, read_questions
from shared.evaluation.temporary import temporary, workplace, write_corpus
from shared.ledger import generations
from shared.models import Passage
from shared.providers.local import LocalEmbedder
from shared.system.servers import Servers

Numbers = npt.NDArray[np.float64]
Vectors = npt.NDArray[np.float32]
T = TypeVar("T")

PUBLIC = Path("../shared/eval")
NAMES = ("chunking_eval", "xquad_multi", "xquad_de", "mtrag_cloud", "cranfield", "anthropic_codebases")
LANGUAGES = ("en", "es", "ru")  # languages of xquad_multi
DOCUMENTS = 2_000  # limit for a larger corpus: the answering documents and random others
MOST = 300  # maximum questions of a collection without exact places
FOREIGN = 50  # questions of other collections for each collection
TIMED = 100
COST = 1.0  # cost of a false refusal; a false answer to an unanswerable question costs 1
RIDGE = 1e-3


@dataclass(frozen=True, slots=True)
class Collection:
    """Questions and documents. `subjects`: document → its group, left out together; empty if none can be left out."""

    name: str
    questions: Sequence[Question]
    subjects: Mapping[str, str]
    write: Callable[[Path], Path]  # writes the documents below a folder

    @property
    def family(self) -> str:
        """Return the first part of the name. Collections with an equal first part are translations of each other."""
        return self.name.split("_")[0]

    @property
    def folds(self) -> list[str]:
        """Return the documents to leave out, one document for each fit."""
        places = any(question.spans for question in self.questions)
        return sorted(set(self.subjects.values())) if places else []

    def subject(self, question: Question) -> str:
        return next((self.subjects[name] for name in question.relevant if name in self.subjects), "")

    def members(self, *subjects: str) -> list[str]:
        return [name for name, subject in self.subjects.items() if subject in subjects]


@dataclass(frozen=True, slots=True)
class Case:
    """The result of one question. `kind`: answerable | left out | elsewhere.

    `subject`: the subject of the question; for "elsewhere", the other collection. `fold`: the document that was not in
    the index, to fit the numbers without this document. `evidence`: as in api/answering/extractive.py. `hit`: True if a
    quote overlaps the answer (with known places) or is from the right document.
    """

    collection: str
    subject: str
    kind: str
    fold: str
    question: str
    text: str
    evidence: tuple[float, ...]
    hit: bool
    claims: int
    standing: int


@dataclass(frozen=True, slots=True)
class Without(Filters):
    """Filters that also leave out the documents with these keys."""

    keys: tuple[str, ...] = ()

    def condition(self) -> sql.Composable:
        return sql.SQL("d.key <> ALL(%(f_without)s)")

    def parameters(self) -> dict[str, Any]:
        return {"f_without": list(self.keys)}


# --- reading


def read(name: str) -> Iterator[Collection]:
    """Yield the collections of an argument. Raise AskfolderError if they cannot be read."""
    questions, _, documents = name.partition("=")
    path = Path(questions)
    if documents:
        asked = read_questions(path)
        yield Collection(path.stem, asked, _themselves(asked), lambda _: Path(documents).absolute())
    elif (path / "questions_spans.jsonl.gz").exists():
        asked = list(_read_spans(path / "questions_spans.jsonl.gz"))
        yield Collection(path.name, asked, _themselves(asked), lambda _: (path / "corpora").absolute())
    elif path.name == "xquad_multi":
        yield from (_read_beir(path, f"xquad_{language}", f"{language}:") for language in LANGUAGES)
    else:
        yield _read_beir(path, path.name)


def _themselves(questions: Sequence[Question]) -> dict[str, str]:
    return {name: name for question in questions for name in question.relevant}


def _read_spans(path: Path) -> Iterator[Question]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            name = row["doc"] + ".md"
            spans: list[Span] = [(one["start_index"], one["end_index"]) for one in row["references"]]
            yield Question(row["_id"], row["text"], {name: 1}, {name: spans})


def _read_beir(path: Path, name: str, start: str = "") -> Collection:
    """Read the documents with ids that begin with `start`, and their questions, with the file names in the index."""
    corpus = [row for row in read_corpus(path) if row[0].startswith(start)]
    asked = [question for question in read_beir(path) if question.id.startswith(start)]
    here = {row[0] for row in corpus}
    right = {one for question in asked for one in question.relevant if one in here}
    others = [row for row in corpus if row[0] not in right]
    if len(corpus) > DOCUMENTS:
        kept = {row[0] for row in _some(others, DOCUMENTS - len(right))} | right
        corpus = [row for row in corpus if row[0] in kept]
    with tempfile.TemporaryDirectory() as folder:
        files = {document: file for file, document in _write(corpus, Path(folder)).items()}
    asked = [replace(q, relevant={files[d]: grade for d, grade in q.relevant.items() if d in files}) for q in asked]
    asked = [question for question in asked if question.relevant]
    subjects = {files[d]: d.split(":")[-1].split("-")[0] for d, *_ in corpus} if name.startswith("xquad") else {}

    def write(folder: Path) -> Path:
        _write(corpus, folder)
        return folder / "documents"

    return Collection(name, _some(asked, MOST), subjects, write)


def _write(corpus: Sequence[tuple[str, str, str]], folder: Path) -> dict[str, str]:
    (folder / "beir").mkdir(exist_ok=True)
    rows = (json.dumps({"_id": name, "title": title, "text": text}) + "\n" for name, title, text in corpus)
    (folder / "beir" / "corpus.jsonl").write_text("".join(rows), encoding="utf-8")
    return write_corpus(folder / "beir", folder / "documents")


def _some(things: Sequence[T], most: int) -> list[T]:
    return random.Random(1).sample(things, min(most, len(things)))


# --- asking


class Index:
    """A collection's index, and sentence vectors that are computed once for all collections."""

    def __init__(self, connection: Connection, embedder: LocalEmbedder, vectors: dict[str, Vectors]) -> None:
        self.connection, self.embedder, self.vectors = connection, embedder, vectors

    def find(self, question: str, without: Sequence[str] = ()) -> list[Passage]:
        """Find the passages for an answer like api/ask.py, in an index without these documents."""
        generation = generations.live(self.connection)
        assert generation is not None
        filters = Without(keys=tuple(without)) if without else Filters()
        query = Query(question, PASSAGES + ask.SPARE, filters=filters)
        found = retrieve.retrieve(self.connection, generation, query, self.embedder.embed_question(question))
        return passages.with_neighbours(self.connection, passages.diversify(found, PASSAGES))

    def embed(self, texts: Sequence[str]) -> Vectors:
        if fresh := [text for text in dict.fromkeys(texts) if text not in self.vectors]:
            self.vectors.update(zip(fresh, self.embedder.embed(fresh), strict=True))
        return np.stack([self.vectors[text] for text in texts])


def cases(index: Index, collection: Collection, others: Sequence[Collection]) -> Iterator[Case]:
    """Ask the collection's questions with all documents and without each fold, and questions of other collections."""
    folds = ["", *collection.folds]
    for question in collection.questions:
        subject = collection.subject(question)
        for fold in folds:
            if fold == subject and fold:
                continue
            yield _case(index, collection, subject, "answerable", fold, question)
            if subject:
                yield _case(index, collection, subject, "left out", fold, question)
    for other in others:
        if other.family != collection.family:
            for question in _some(other.questions, FOREIGN):
                for fold in folds:
                    yield _case(index, collection, other.name, "elsewhere", fold, question)


def _case(index: Index, collection: Collection, subject: str, kind: str, fold: str, question: Question) -> Case:
    found = index.find(question.text, collection.members(fold, subject if kind == "left out" else ""))
    draft, evidence = extractive.quote(question.text, found, index.embed)
    verification = Verification(found)
    for statement in draft.statements:
        list(verification.check(statement, resolve(index.connection, statement.claims, found)))
    hit = kind == "answerable" and any(
        any(c.char_start < end and start < c.char_end for start, end in question.spans[c.source])
        if c.source in question.spans
        else not question.spans and c.source in question.relevant
        for c in verification.citations
    )
    claims = {claim for statement in draft.statements for claim in statement.claims}
    return Case(
        collection.name,
        subject,
        kind,
        fold,
        question.id,
        question.text,
        tuple(evidence),
        hit,
        len(claims),
        len(verification.citations),
    )


def times(index: Index, collection: Collection) -> list[float]:
    """Measure the milliseconds from passages to draft, one question at a time, after a warm-up question."""
    found = [(question.text, index.find(question.text)) for question in _some(collection.questions, TIMED)]
    took = []
    for text, those in found[:1] + found:
        started = time.perf_counter()
        extractive.extract(text, those, index.embedder.embed)
        took.append((time.perf_counter() - started) * 1000)
    return took[1:]


# --- fitting and reporting


def fit(known: Sequence[Case]) -> Numbers:
    """Fit the weights of the evidence (the first weight is 1) and the constant term; a sum below 0 is a refusal.

    The method is logistic regression with a small ridge. Every collection has the same weight. In a collection, the
    answerable questions together weigh COST times as much as all others; "left out" and "elsewhere" weigh the same. At
    even odds, one more refusal gains nothing.
    """
    evidence = np.array([case.evidence for case in known], np.float64)
    right = np.array([case.kind == "answerable" for case in known])
    weight = np.zeros(len(known))
    for name in {case.collection for case in known}:
        kinds = {case.kind for case in known if case.collection == name}
        for kind in kinds:
            those = np.array([case.collection == name and case.kind == kind for case in known])
            weight[those] = (COST if kind == "answerable" else 1 / len(kinds - {"answerable"})) / those.sum()
    weight /= weight.sum()
    mean, spread = evidence.mean(0), evidence.std(0) + 1e-9
    design = np.c_[(evidence - mean) / spread, np.ones(len(known))]
    numbers, ridge = np.zeros(design.shape[1]), RIDGE * np.eye(design.shape[1])
    ridge[-1, -1] = 0.0
    for _ in range(30):  # steps of Newton's method
        odds = 1 / (1 + np.exp(-design @ numbers))
        slope = design.T @ (weight * (odds - right)) + ridge @ numbers
        bend = (design.T * (weight * odds * (1 - odds))) @ design + ridge
        numbers = numbers - np.linalg.solve(bend, slope)
    each = numbers[:-1] / spread
    fitted: Numbers = np.append(each, numbers[-1] - each @ mean) / each[0]
    return fitted


def refused(case: Case, numbers: Numbers) -> bool:
    return float(np.dot(case.evidence, numbers[:-1]) + numbers[-1]) < 0


def line(name: str, judged: Sequence[tuple[Case, bool]]) -> str:
    """Return a line with the rates, in percent, of (case, refused) pairs."""

    def rate(kind: str, good: Callable[[Case, bool], bool]) -> str:
        those = [good(case, no) for case, no in judged if case.kind == kind]
        return f"{100 * np.mean(those):7.1f}" if those else "      –"

    count = sum(case.kind == "answerable" for case, _ in judged)
    return (
        f"{name:24}{count:6}"
        + rate("answerable", lambda case, no: case.hit and not no)
        + rate("answerable", lambda _, no: no)
        + rate("elsewhere", lambda _, no: no)
        + rate("left out", lambda _, no: no)
    )


HEAD = f"{'':24}{'asked':>6}{'holds':>7}{'false':>7}{'elsew.':>7}{'left':>7}"


def report(known: Sequence[Case], collections: Sequence[Collection]) -> None:
    print(
        "In %. holds: a quote has the answer; false: refused, though answerable; elsew., left: refused, and rightly so"
    )
    for collection in collections:
        if len(collection.folds) > 1:
            print(f"\n{collection.name}, fitted to its other documents\n{HEAD}")
            pooled = []
            for fold, judged in by_document(known, collection):
                print(line(fold, judged))
                pooled += judged
            print(line("all", pooled))
    full = [case for case in known if not case.fold]
    if len({collection.family for collection in collections}) > 1:
        print(f"\nFitted to the other collections\n{HEAD}")
        for collection in collections:
            same = {other.name for other in collections if other.family == collection.family}
            numbers = fit([case for case in full if not same & {case.collection, case.subject}])
            print(line(collection.name, [(c, refused(c, numbers)) for c in full if c.collection == collection.name]))
    print(f"\nAs it is in api/answering/extractive.py, fitted to all of them\n{HEAD}")
    current = np.array([*extractive.WEIGHTS, -extractive.THRESHOLD])
    for collection in collections:
        print(line(collection.name, [(c, refused(c, current)) for c in full if c.collection == collection.name]))
    claims, standing = sum(case.claims for case in known), sum(case.standing for case in known)
    print(f"\nverbatim: {standing} of {claims} quotes")
    if any(case.kind != "answerable" for case in full):
        *weights, added = fit(full)
        print(
            f"fitted to all: WEIGHTS = ({', '.join(f'{number:.3f}' for number in weights)}), THRESHOLD = {-added:.3f}"
        )


def by_document(known: Sequence[Case], collection: Collection) -> Iterator[tuple[str, list[tuple[Case, bool]]]]:
    """Test each document's cases with numbers fitted without the document and its share of "elsewhere" questions."""
    here = [case for case in known if case.collection == collection.name]
    elsewhere = sorted({case.question for case in here if case.kind == "elsewhere"})
    for place, document in enumerate(collection.folds):
        part = set(elsewhere[place :: len(collection.folds)])
        numbers = fit([c for c in here if c.fold == document and c.question not in part])
        test = [
            c for c in here if not c.fold and (c.question in part if c.kind == "elsewhere" else c.subject == document)
        ]
        yield document, [(case, refused(case, numbers)) for case in test]


# --- running


@contextlib.contextmanager
def opened(collection: Collection, keep: Path) -> Iterator[tuple[Connection, Path]]:
    """Yield a connection to the collection's index, built if it is missing, and the model's folder."""
    folder = keep / collection.name
    with workplace(folder, collection.name):
        data = (folder / "data").absolute()
        with temporary(collection.write(folder), data, {}, lambda message: print(message, file=sys.stderr)):
            pass
        servers = Servers(data, valkey=False)
        servers.start()
        try:
            with db.connect(servers.database_url) as connection:
                db.prepare(connection)
                retrieve.configure(connection)
                yield connection, data / "models" / "all-MiniLM-L6-v2"
        finally:
            servers.stop()


def measure(collections: Sequence[Collection], keep: Path) -> list[Case]:
    """Return every case of every collection, and print the time of an answer."""
    known: list[Case] = []
    vectors: dict[str, Vectors] = {}
    for collection in collections:
        with opened(collection, keep) as (connection, model):
            index = Index(connection, LocalEmbedder(model, threads=2), vectors)
            took = times(index, collection)
            print(
                f"{collection.name}: extract() {np.median(took):.0f} ms p50, {np.quantile(took, 0.95):.0f} ms p95",
                flush=True,
            )
            known += cases(index, collection, collections)
    return known


def main() -> None:
    parser = argparse.ArgumentParser(usage=(__doc__ or "").partition("usage: ")[2].partition("\n")[0])
    parser.add_argument("collections", nargs="*")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "askfolder-extractive")
    parser.add_argument("--cases", type=Path)
    arguments = parser.parse_args()
    names = arguments.collections or [str(PUBLIC / name) for name in NAMES if (PUBLIC / name).is_dir()]
    if not names:
        sys.exit(f"{PUBLIC} is not there, so nothing is measured: name a BEIR folder, or QUESTIONS.jsonl=FOLDER.")
    try:
        collections = [collection for name in names for collection in read(name)]
        known = measure(collections, arguments.keep)
    except AskfolderError as error:
        sys.exit(str(error))
    if arguments.cases:
        rows = (json.dumps(asdict(case), ensure_ascii=False) + "\n" for case in known)
        arguments.cases.write_text("".join(rows), encoding="utf-8")
    report(known, collections)


if __name__ == "__main__":
    main()
