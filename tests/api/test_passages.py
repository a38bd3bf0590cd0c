"""Passages: lists without repetitions, and continuation with neighbouring chunks."""

from dataclasses import replace
from pathlib import Path

import pytest

from api.retrieval import passages
from shared.db import Connection
from shared.ledger import claims, documents, generations, sources
from shared.ledger.generations import Generation
from shared.models import Heading, Parsed, Passage
from tests.api.test_retrieval import vector_of
from worker.indexing import index
from worker.indexing import inputs as embedding_inputs
from worker.indexing.chunking import chunk

TEXT = (
    "# Keys\n\n"
    + "\n\n".join(f"Sentence {n} of the chapter on keys is here. It goes on for a while." for n in range(12))
    + "\n\n# Boats\n\n"
    + "\n\n".join(f"Boat {n} lies at the pier and waits for its crew." for n in range(6))
)


def passage(content: str, document: int = 1, score: float = 0.5) -> Passage:
    return Passage(hash(content), document, f"{document}.md", None, content, score, None, (), 0, len(content))


def test_copies_come_last_and_one_document_takes_at_most_half() -> None:
    text = "the heron stands in the shallow water of the lake and waits for a fish that comes too near to it today"
    others = [
        passage(f"{word} {word}s and more of {word}", number, 0.5)
        for number, word in enumerate(["gull", "tern", "swan", "duck"], 10)
    ]
    ranking = [
        passage(text),
        passage(f"{text} !", 2),
        *(passage(f"part {n}: {chr(97 + n) * 9}", 1, 0.5) for n in range(6)),
        *others,
    ]
    taken = passages.diversify(ranking, 6)
    assert [p.document_id for p in taken] == [1, 1, 1, 10, 11, 12]
    assert ranking[1] not in taken, "the same words in another file"
    assert passages.diversify([passage(text), passage(text, 2)], 5) == [passage(text), passage(text, 2)], (
        "there is nothing else"
    )
    assert passages.diversify([], 5) == []


def test_a_much_worse_document_does_not_displace_a_good_one() -> None:
    good = [passage(f"part {n}: {chr(97 + n) * 9}", 1, 0.9 - n / 100) for n in range(4)]
    poor = [passage(f"other {n} {chr(110 + n) * 5}", 5 + n, 0.2) for n in range(4)]
    assert passages.diversify([*good, *poor], 4) == good
    assert [p.document_id for p in passages.diversify([*good, *(replace(p, score=0.85) for p in poor)], 4)] == [
        1,
        1,
        5,
        6,
    ]


@pytest.fixture
def stored(connection: Connection, tmp_path: Path) -> tuple[Connection, Generation, list[Passage]]:
    """Store TEXT in chunks of a few sentences, and return a passage for each chunk."""
    generations.want(connection, "local", "model", "", 8, "1/200/28", embedding_inputs.TEMPLATE)
    generation = generations.live(connection)
    assert generation
    source_id = sources.source(connection, "folder", str(tmp_path))
    documents.enqueue(connection, source_id, [("a.md", "1-1", len(TEXT))])
    claim = claims.claim(connection, documents.due(connection, [source_id], 1)[0].id, "here:1")
    assert claim
    parsed = Parsed(
        TEXT, "markdown", "markdown", None, (Heading(0, 1, "Keys"), Heading(TEXT.index("# Boats"), 1, "Boats"))
    )
    chunks = chunk(parsed, lambda texts: [len(text.split()) for text in texts], 40, 8)
    inputs = [(c, embedding_inputs.hash_of(c.content)) for c in chunks]
    import numpy as np

    index.cache(
        connection,
        generation,
        claim.collection_id,
        [h for _, h in inputs],
        np.stack([vector_of(c.content, 8) for c in chunks]),
    )
    with connection.transaction():
        version = claims.set_text(connection, claim, parsed, claim.wanted_revision, b"x")
        index.replace(connection, generation, claim.id, inputs, version, "english")
        claims.ready(connection, claim)
    rows = connection.execute(
        "SELECT id, document_id, content, char_start, char_end, heading_path FROM chunk ORDER BY ordinal"
    )
    return (
        connection,
        generation,
        [Passage(i, d, "a.md", None, c, 0.5, None, tuple(h), a, b) for i, d, c, a, b, h in rows],
    )


def test_a_passage_is_continued_under_its_heading(stored: tuple[Connection, Generation, list[Passage]]) -> None:
    connection, _, parts = stored
    assert len(parts) > 5
    boats = next(p for p in parts if p.heading == ("Boats",))
    keys = [p for p in parts if p.heading == ("Keys",)]
    for budget in (100, 300, 600, 2_000):
        for part in parts:
            merged = passages.with_neighbours(connection, [part], budget)[0]
            assert merged.content == TEXT[merged.char_start : merged.char_end], "citations are checked against the text"
            assert part.content in merged.content
            assert len(merged.content) <= max(budget, len(part.content))
    assert passages.with_neighbours(connection, [keys[-1]], 2_000)[0].char_end < TEXT.index("# Boats")
    assert passages.with_neighbours(connection, [boats], 2_000)[0].char_start == TEXT.index("# Boats")
    assert passages.with_neighbours(connection, [keys[2]], 2_000)[0].char_start < keys[2].char_start


def test_adjacent_passages_are_merged_at_the_better_rank(
    stored: tuple[Connection, Generation, list[Passage]],
) -> None:
    connection, _, parts = stored
    far = next(p for p in parts if p.heading == ("Boats",))
    together = passages.with_neighbours(connection, [parts[1], far, parts[2]], 600)
    assert len(together) == 2
    assert together[0].chunk_id == parts[1].chunk_id
    assert parts[2].content in together[0].content
    assert together[0].content == TEXT[together[0].char_start : together[0].char_end]


def test_a_passage_of_a_changed_text_is_returned_unchanged(
    stored: tuple[Connection, Generation, list[Passage]],
) -> None:
    connection, _, parts = stored
    connection.execute("UPDATE document_text SET text_version = text_version + 1, content = upper(content)")
    assert passages.with_neighbours(connection, [parts[1]], 2_000) == [parts[1]], (
        "another generation holds the newer one"
    )
    connection.execute("DELETE FROM document_text")
    assert passages.with_neighbours(connection, [parts[1]], 2_000) == [parts[1]]
