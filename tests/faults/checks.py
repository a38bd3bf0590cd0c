"""Check the invariants by SQL and through /search, without the product's code. The folder's files are the truth."""

import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import httpx2
import numpy as np

from tests.faults.folder import MARK, Folder, files
from tests.faults.standin import DIMENSIONS, QUESTION
from tests.faults.system import Faulty, wait
from tests.standins.providers import bag_of_words

KINDS = {
    "lost": "files without a ready document, or without a result",
    "duplicated": "duplicate chunks or documents, or documents without a file",
    "stale": "documents or chunks whose text differs from the file",
    "mixed": "documents whose chunks come from two revisions",
    "uneven": "chunks without exactly one vector and one lexical row, or such rows without a chunk",
    "wrong": "vectors that differ from those of their text",
    "stuck": "rows that no process will finish",
    "set aside": "readable files that failed or were quarantined",
}


@dataclass
class Damage:
    """The amount of each kind of damage, with examples."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    documents: int = 0
    chunks: int = 0
    searched: int = 0

    def add(self, kind: str, what: str) -> None:
        self.counts[kind] += 1
        if len(self.examples[kind]) < 3:
            self.examples[kind].append(what)

    def __bool__(self) -> bool:
        return bool(self.counts)

    def summary(self) -> str:
        return "; ".join(f"{kind} {self.counts[kind]}: {', '.join(self.examples[kind])}" for kind in self.counts)


_ROWS = """
    SELECT id, key, state, stage, state IN ('queued', 'ingesting') OR document_id IS NOT NULL AS busy
    FROM document LEFT JOIN task ON document_id = id WHERE state <> 'deleted'
"""


def is_settled(system: Faulty, unreadable: Collection[str] = ()) -> bool:
    """Return True if the ledger is idle and contains exactly the folder's files, by hash."""
    if any(busy for *_, busy in system.rows(_ROWS)):
        return False
    rows = system.rows("SELECT key, live_sha256, state FROM document WHERE state IN ('ready', 'failed', 'quarantined')")
    if {key for key, _, state in rows if state != "ready"} - set(unreadable) or set(unreadable) - {
        key for key, *_ in rows
    }:
        return False
    ledger = {key: bytes(digest or b"") for key, digest, _ in rows if key not in unreadable}
    there = {k: hashlib.sha256(v).digest() for k, v in files(system.folder).items() if k not in unreadable}
    return ledger == there


def settle(system: Faulty, seconds: float, unreadable: Collection[str] = ()) -> float | None:
    """Wait until everything is ingested. Return the elapsed seconds, or None after a timeout of `seconds`."""
    started = time.monotonic()
    return time.monotonic() - started if wait(lambda: is_settled(system, unreadable), seconds, 0.25) else None


def check(
    system: Faulty, folders: Collection[Folder] = (), unreadable: Collection[str] = (), sample: int = 60
) -> Damage:
    """Check all invariants. `folders`: the writers, for deleted names; `unreadable`: keys that must not be ready."""
    damage = Damage()
    there = {key: content.decode() for key, content in files(system.folder).items() if key not in unreadable}
    documents = _ledger(system, damage, there, unreadable)
    _chunks(system, damage, there, documents)
    _rows(system, damage)
    dead = [key for folder in folders for key in folder.dead if key not in there]
    _search(system, damage, there, dead, sample)
    damage.documents = len(documents)
    return damage


def _ledger(system: Faulty, damage: Damage, there: dict[str, str], unreadable: Collection[str]) -> dict[int, str]:
    """Check the ledger's rows. Return id → key of the ready documents."""
    ready: dict[int, str] = {}
    for number, key, state, stage, busy in system.rows(_ROWS):
        if busy:
            damage.add("stuck", f"{key} is {state} ({stage})")
        elif state == "ready":
            ready[number] = key
            if key not in there:
                damage.add("duplicated", f"{key} is ready and there is no such file")
        elif key in there:
            damage.add("set aside", f"{key} is {state}")
        elif key not in unreadable:
            damage.add("duplicated", f"{key} is {state} and there is no such file")
    for key in there.keys() - set(ready.values()):
        damage.add("lost", f"{key} is not ready")
    return ready


def _chunks(system: Faulty, damage: Damage, there: dict[str, str], documents: dict[int, str]) -> None:
    """Check that each document has its file's text, and each chunk of that text once."""
    with system.database() as connection:
        for number, content in connection.execute("SELECT document_id, content FROM document_text"):
            if number in documents and there.get(documents[number], content) != content:
                damage.add("stale", f"the text of {documents[number]} is not its file's")
        rows = connection.execute(
            "SELECT document_id, generation_id, ordinal, char_start, char_end, content FROM chunk "
            "JOIN document d ON d.id = document_id WHERE d.state <> 'deleted' ORDER BY 1, 2, 3"
        ).fetchall()
    grouped: dict[tuple[int, int], list[tuple[Any, ...]]] = defaultdict(list)
    for number, generation, *rest in rows:
        grouped[number, generation].append(tuple(rest))
    for (number, generation), chunks in grouped.items():
        key = documents.get(number)
        if key is None:
            damage.add("duplicated", f"document {number} is not ready and has {len(chunks)} chunks")
            continue
        text = there.get(key, "")
        damage.chunks += len(chunks)
        if [chunk[0] for chunk in chunks] != list(range(len(chunks))):
            damage.add(
                "duplicated", f"{key} in generation {generation}: ordinals {[chunk[0] for chunk in chunks][:9]} …"
            )
        old = [chunk for chunk in chunks if text[chunk[1] : chunk[2]] != chunk[3]]
        if old:
            damage.add("stale", f"{len(old)} of {len(chunks)} chunks of {key} are not in its file")
        if old and len(old) < len(chunks):
            damage.add("mixed", f"{key} has {len(chunks) - len(old)} chunks of its file and {len(old)} others")
        missing = set(MARK.findall(text)) - {m for chunk in chunks for m in MARK.findall(chunk[3])}
        if missing and not old:
            damage.add("lost", f"parts of {key} are in no chunk")
    for number in documents.keys() - {number for number, _ in grouped}:
        damage.add("lost", f"{documents[number]} is ready and has no chunks")


def _rows(system: Faulty, damage: Damage) -> None:
    """Check that each chunk has exactly one vector and one lexical row, and that each vector belongs to its text."""
    live = system.rows("SELECT id, model, dimensions FROM generation WHERE state IN ('live', 'building')")
    for number, model, dimensions in live:
        counts = system.rows(
            f"""
            SELECT (SELECT count(*) FROM chunk WHERE generation_id = {number}), (SELECT count(*) FROM vector_{number}),
                   (SELECT count(*) FROM lexical_{number}),
                   (SELECT count(*) FROM chunk c JOIN vector_{number} v ON v.chunk_id = c.id
                    JOIN lexical_{number} l ON l.chunk_id = c.id WHERE c.generation_id = {number}),
                   (SELECT count(*) FROM (SELECT 1 FROM chunk GROUP BY generation_id, document_id, ordinal
                                          HAVING count(*) > 1) AS x)
            """
        )[0]
        if len(set(counts[:4])) > 1:
            damage.add("uneven", "chunks {}, vectors {}, lexical rows {}, all three {}".format(*counts[:4]))
        if counts[4]:
            damage.add("duplicated", f"{counts[4]} ordinals are there more than once")
        far = system.rows(
            f"""
            SELECT c.id FROM chunk c JOIN document d ON d.id = c.document_id JOIN vector_{number} v ON v.chunk_id = c.id
            LEFT JOIN vector_cache k ON k.collection_id = d.collection_id AND k.model = %s AND k.dimensions = %s
              AND k.input_hash = c.input_hash
            WHERE c.generation_id = {number}
              AND (k.embedding IS NULL OR (v.embedding <=> k.embedding::halfvec) > 0.001)
            """,
            model,
            dimensions,
        )
        for (chunk,) in far:
            damage.add("wrong", f"chunk {chunk} has another vector than its text")
        _arithmetic(system, damage, number)


def _arithmetic(system: Faulty, damage: Damage, generation: int, sample: int = 400) -> None:
    """Compare stored vectors with the stand-in's vectors, for texts without a header."""
    rows = system.rows(
        f"SELECT c.id, c.content, v.embedding::text FROM chunk c JOIN vector_{generation} v ON v.chunk_id = c.id "
        "WHERE c.input_hash = sha256(convert_to(c.content, 'UTF8')) ORDER BY md5(c.id::text) LIMIT %s",
        sample,
    )
    for number, content, stored in rows:
        vector = np.array([float(value) for value in stored.strip("[]").split(",")])
        if float(vector @ np.array(bag_of_words(content, DIMENSIONS))) < 0.999 * float(np.linalg.norm(vector)):
            damage.add("wrong", f"chunk {number} has not the vector of its text")


def _search(system: Faulty, damage: Damage, there: dict[str, str], dead: list[str], sample: int) -> None:
    """Search for a sample of files. Require that only their newest text is found and deleted names are not found."""
    with system.client() as client:
        for key in _spread(sorted(there), sample):
            found = _results(client, key, damage)
            damage.searched += 1
            if not found:
                damage.add("lost", f"a search in {key} finds nothing")
            old = [result for result in found if result["content"] not in there.get(result["source"], "")]
            if old:
                damage.add("stale", f"a search in {key} finds {len(old)} passages that are not in the file")
        for key in _spread(dead, sample):
            damage.searched += 1
            if found := _results(client, key, damage):
                damage.add("stale", f"a search in {key}, which is gone, finds {len(found)} passages")


def _results(client: httpx2.Client, key: str, damage: Damage) -> list[dict[str, Any]]:
    body = {"query": f"{QUESTION} what is said of the heron in this line?", "top_k": 100, "filters": {"source": key}}
    response = client.post("/search", json=body)
    if response.status_code != 200:
        damage.add("lost", f"a search in {key} answers {response.status_code}")
        return []
    results: list[dict[str, Any]] = response.json()["results"]
    return results


def _spread(keys: list[str], count: int) -> list[str]:
    return keys[:: max(1, len(keys) // count)][: count + 1] if keys else []
