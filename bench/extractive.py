"""What quoted answers are worth: how often they hold the answer, and what is refused that should be, or should not be.

usage: python -m bench.extractive KEPT QUESTIONS [FOREIGN …]

KEPT: a folder of `askfolder eval QUESTIONS --keep KEPT`, with no system running on it; QUESTIONS and FOREIGN: JSONL files or
BEIR folders. Four sets are asked of that index: the questions; the same without the documents that answer; the same without
only the places that answer (where spans are given); and up to 100 of each FOREIGN collection.
"""

import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from api import citations, extractive, passages, retrieval
from api.filters import Filters
from shared import db, generations
from shared.db import Connection
from shared.embedding import LocalEmbedder
from shared.evaluation import Question, Span, read_beir, read_corpus, read_questions
from shared.models import Passage
from shared.servers import Servers
from shared.temporary import file_name

DEPTH = 3_000  # passages that are looked at where some are left out: whole documents of a small collection
MOST = 300  # questions that are asked of a collection
FALSE_REFUSALS = (0.02, 0.035, 0.05)


def read(path: Path) -> list[Question]:
    """With the names that files have in the index."""
    if not path.is_dir():
        return read_questions(path)
    names = {
        name: file_name(name) + (".md" if title.strip() else ".txt") for name, title, _ in read_corpus(path)
    }  # as shared/temporary.py writes them
    return [
        Question(q.id, q.text, {names[d]: 1 for d in q.relevant if d in names}, {})
        for q in read_beir(path)
        if q.relevant.keys() & names.keys()
    ]


def find(
    connection: Connection, embedder: LocalEmbedder, question: str, documents: Sequence[str] = (), spans: Mapping[str, Sequence[Span]] | None = None
) -> list[Passage]:  # fmt: skip
    """What an answer is made from, without passages of these documents or at these places."""
    generation = generations.live(connection)
    assert generation is not None
    vector, without = embedder.embed_question(question), bool(documents or spans)
    found = retrieval.retrieve(connection, generation, question, vector, DEPTH if without else 28, "hybrid", Filters())
    if without:
        found = [p for p in found if p.source not in documents and not _at(p, spans or {})][:28]
    found = passages.spread(found, extractive.PASSAGES)
    alone = {p.chunk_id: p for p in found}
    return [alone[p.chunk_id] if _at(p, spans or {}) else p for p in passages.whole(connection, found)]


def _at(place: Passage, spans: Mapping[str, Sequence[Span]]) -> bool:
    return any(place.char_start < end and start < place.char_end for start, end in spans.get(place.source, ()))


def sets(
    connection: Connection, embedder: LocalEmbedder, path: Path, foreign: Sequence[Path]
) -> Iterator[tuple[str, Question, list[Passage]]]:
    """(set, question, passages)."""
    questions = read(path)
    for question in questions if question_spans(questions) else _some(questions, MOST):
        yield "answerable", question, find(connection, embedder, question.text)
        yield "document left out", question, find(connection, embedder, question.text, list(question.relevant))
        if question.spans:
            yield "place left out", question, find(connection, embedder, question.text, spans=question.spans)
    for other in foreign:
        for question in _some(read(other), 100):
            yield f"of {other.stem}", question, find(connection, embedder, question.text)


def question_spans(questions: Sequence[Question]) -> bool:
    return any(question.spans for question in questions)


def _some(questions: Sequence[Question], most: int) -> list[Question]:
    return random.Random(1).sample(questions, min(most, len(questions)))


def measure(connection: Connection, embedder: LocalEmbedder, path: Path, foreign: Sequence[Path]) -> None:
    """Prints a line for each set, and the thresholds that some rates of false refusals would need."""
    evidence: list[float] = []
    decide = extractive._evidence
    extractive._evidence = lambda *given: evidence.append(decide(*given)) or evidence[-1]  # type: ignore[func-returns-value]
    vector = cache(lambda text: embedder.embed([text])[0])
    rows: dict[str, list[tuple[bool, bool, float]]] = {}
    claimed = standing = 0
    took: list[float] = []
    for name, question, found in sets(connection, embedder, path, foreign):
        evidence.append(0.0)  # for what is refused before any is looked at
        if name == "answerable" and len(took) < 100:
            started = time.perf_counter()
            extractive.extract(question.text, found, embedder.embed)
            took.append((time.perf_counter() - started) * 1000)
        draft = extractive.extract(question.text, found, lambda texts: np.stack([vector(text) for text in texts]))
        answer = citations.verify(connection, draft, found, "extractive", {})
        claimed += len({claim for statement in draft.statements for claim in statement.claims})
        standing += len(answer.citations)
        hit = any(
            any(c.char_start < end and start < c.char_end for start, end in question.spans[c.source])
            if c.source in question.spans
            else not question.spans and c.source in question.relevant
            for c in answer.citations
        )
        rows.setdefault(name, []).append((hit, not answer.citations, evidence[-1]))
    for name, row in rows.items():
        hits, refused, _ = np.mean(np.array(row, float), axis=0) * 100
        print(f"{name:24} {len(row):4} refused {refused:5.1f} %" + (f", quotes hold the answer {hits:5.1f} %" if name == "answerable" else ""))  # fmt: skip
    print(f"verbatim: {standing} of {claimed}; extract() {np.median(took):.0f} ms p50, {np.quantile(took, 0.95):.0f} ms p95")  # fmt: skip
    known = [one for _, _, one in rows["answerable"]]
    print("thresholds: " + ", ".join(f"{np.quantile(known, share):.2f} refuses {share:.1%} falsely" for share in FALSE_REFUSALS))  # fmt: skip


def main(kept: str, path: str, *foreign: str) -> None:
    data = Path(kept) / "data"
    servers = Servers(data, valkey=False)
    servers.start()
    try:
        with db.connect(servers.database_url) as connection:
            db.prepare(connection)
            retrieval.configure(connection)
            embedder = LocalEmbedder(data / "models/all-MiniLM-L6-v2", threads=2)
            measure(connection, embedder, Path(path), [Path(other) for other in foreign])
    finally:
        servers.stop()


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
