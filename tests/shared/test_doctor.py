"""The doctor finds and repairs each kind of damage, and reports nothing in an undamaged index."""

import os
from pathlib import Path

import pytest

from shared.db import Connection
from shared.ledger import claims, doctor, documents, generations, listing, sources
from shared.ledger.generations import Generation
from worker.indexing import index
from worker.indexing import inputs as embedding_inputs
from worker.indexing.chunking import chunk
from worker.parsing.parser import Parser

DIMENSIONS = 8


@pytest.fixture
def generation(connection: Connection) -> Generation:
    generations.want(connection, "local", "model", "", DIMENSIONS, "1/200/28", "1")
    live = generations.live(connection)
    assert live
    return live


def ingest_due(connection: Connection, generation: Generation, folder: Path) -> None:
    """Ingest the due documents like a worker, with vectors that need no model."""
    import numpy as np

    source_id = sources.source(connection, "folder", str(folder))
    for due in documents.due(connection, [source_id], 100):
        claim = claims.claim(connection, due.id, "here:1")
        assert claim
        with Parser() as parser:
            parsed = parser.parse(folder / claim.key, claim.key)
        chunks = chunk(parsed, lambda texts: [len(text.split()) for text in texts], 20)
        inputs = [(c, embedding_inputs.hash_of(c.content)) for c in chunks]
        index.cache(
            connection,
            generation,
            claim.collection_id,
            [h for _, h in inputs],
            np.eye(len(inputs), DIMENSIONS, dtype=np.float32),
        )
        with connection.transaction():
            claims.lock(connection, claim)
            version = claims.set_text(connection, claim, parsed, claim.wanted_revision, b"x")
            index.replace(connection, generation, claim.id, inputs, version, "english")
            claims.ready(connection, claim)


@pytest.fixture
def folder(connection: Connection, generation: Generation, tmp_path: Path) -> Path:
    for name in ("a.md", "b.md"):
        (tmp_path / name).write_text("\n\n".join(f"Paragraph {n} of {name} has these words in it." for n in range(6)))
    source_id = sources.source(connection, "folder", str(tmp_path))
    documents.enqueue(
        connection, source_id, [(name, "1-1", os.path.getsize(tmp_path / name)) for name in ("a.md", "b.md")]
    )
    ingest_due(connection, generation, tmp_path)
    return tmp_path


DAMAGE = {
    "text": "DELETE FROM document_text WHERE document_id = 1",
    "revision": "UPDATE document_generation SET text_version = 7 WHERE document_id = 1",
    "empty": "DELETE FROM chunk WHERE document_id = 1",
    "order": "DELETE FROM chunk WHERE document_id = 1 AND ordinal = 1",
    "unowned": "DELETE FROM document_generation WHERE document_id = 1",
    "places": "UPDATE chunk SET char_start = char_start + 1, char_end = char_end + 1 "
    "WHERE document_id = 1 AND ordinal = 0",
    "count": "UPDATE document SET chunks = 99 WHERE id = 1",
    "rows": "DELETE FROM lexical_1 WHERE chunk_id = (SELECT min(id) FROM chunk WHERE document_id = 1)",
    "stuck": "INSERT INTO task (document_id, lease, leased_until) "
    "VALUES (1, gen_random_uuid(), now() - interval '3 minutes')",
}


def test_no_damage_is_reported_in_an_undamaged_index(connection: Connection, folder: Path) -> None:
    assert doctor.examine(connection) == []


@pytest.mark.parametrize("check", DAMAGE)
def test_damage_is_found_and_repaired(connection: Connection, generation: Generation, folder: Path, check: str) -> None:
    connection.execute(DAMAGE[check])
    findings = doctor.examine(connection)
    assert check in {finding.check for finding in findings}
    assert all(finding.documents == (1,) and "document 1" in finding.sentence for finding in findings)
    doctor.repair(connection, findings)
    ingest_due(connection, generation, folder)
    assert doctor.examine(connection) == []


def test_a_missing_vector_is_computed_again(connection: Connection, generation: Generation, folder: Path) -> None:
    connection.execute("DELETE FROM vector_1 WHERE chunk_id = (SELECT max(id) FROM chunk WHERE document_id = 2)")
    (finding,) = doctor.examine(connection)
    assert finding.check == "rows"
    doctor.repair(connection, [finding])
    (row,) = [row for row in listing.listed(connection, 10) if row["id"] == 2]
    assert (row["state"], row["answers"]) == ("queued", True), "it goes on answering"
    ingest_due(connection, generation, folder)
    assert doctor.examine(connection) == []


def test_every_check_has_a_test() -> None:
    assert {*doctor.CHECKS, "rows"} == set(DAMAGE)
