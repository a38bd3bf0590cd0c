"""A random walk over the ledger, with several workers and no processes. In any order, the complete newest text wins.

A walk is a seed and a list of steps. A failure reports both, to be repeated: `Walk(connection, seed).run(steps)`.
"""

import contextlib
import hashlib
import random
from dataclasses import dataclass

import numpy as np

from shared.db import Connection
from shared.ledger import claims, documents, generations, sources
from shared.ledger.claims import Claim, LostClaim
from shared.models import Chunk, Parsed
from tests.faults.folder import MARK, Written, mark
from worker.indexing import index
from worker.indexing import inputs as embedding_inputs

KEYS = ("a.txt", "b.txt", "c.txt", "sub/d.txt")
DIMENSIONS = 8


def text_of(written: Written) -> str:
    """Return two to four paragraphs with the mark, one for each chunk."""
    return "\n\n".join(f"{mark(written)} paragraph {number}" for number in range(2 + written.revision % 3))


@dataclass
class Work:
    """The task of one worker: its claim, and the content of the file when it was read."""

    claim: Claim
    read: Written | None = None


class Walk:
    """A random walk. `files`: the current source; `stored`: document → the last stored revision."""

    def __init__(self, connection: Connection, seed: int) -> None:
        self.connection, self.seed, self.random = connection, seed, random.Random(seed)
        self.files: dict[str, Written] = {}
        self.revisions: dict[int, int] = {}
        self.turns: list[Work] = []
        self.stored: dict[int, tuple[int, int]] = {}
        self.taken: list[str] = []
        self.source = sources.source(connection, "folder", f"/walk/{seed}")
        generations.want(connection, "openai", "walk", "", DIMENSIONS, "1/1", "1")
        (self.generation,) = generations.active(connection)

    def run(self, steps: int = 120) -> None:
        """Take steps. Raise AssertionError with the seed and the steps if an invariant is broken."""
        names = (
            ["write"] * 6
            + ["remove", "rename"]
            + ["scan"] * 6
            + ["take"] * 6
            + ["read"]
            + ["finish"] * 3
            + [
                "die",
                "expire",
                "sweep",
                "publish",
                "beat",
                "wait",
                "stumble",
                "hand_back",
            ]
        )
        try:
            for _ in range(steps):
                name = self.random.choice(names)
                self.taken.append(name)
                getattr(self, name)()
                self.check()
            self.end()
        except Exception as error:
            raise AssertionError(f"seed {self.seed}, steps {' '.join(self.taken)}: {error}") from error

    # --- the source ---

    def write(self) -> None:
        key = self.random.choice(KEYS)
        identity = self.files[key].identity if key in self.files else len(self.revisions) + 1
        self.revisions[identity] = self.revisions.get(identity, 0) + 1
        self.files[key] = Written(identity, self.revisions[identity])

    def remove(self) -> None:
        if self.files:
            del self.files[self.random.choice(list(self.files))]

    def rename(self) -> None:
        free = [key for key in KEYS if key not in self.files]
        if self.files and free:
            self.files[self.random.choice(free)] = self.files.pop(self.random.choice(list(self.files)))

    # --- the producer ---

    def scan(self) -> None:
        known = documents.known(self.connection, self.source)
        missing = {row.id: row for key, row in known.items() if key not in self.files and row.state != "deleted"}
        for key, written in self.files.items():
            revision, digest = _revision(written), hashlib.sha256(text_of(written).encode()).digest()
            twin = next((row for row in missing.values() if row.live_sha256 == digest), None)
            if key not in known and twin:
                with self.connection.transaction():
                    documents.move(self.connection, twin.id, key, revision)
                    index.rename(self.connection, [self.generation], twin.id)
                del missing[twin.id]
            elif key not in known or known[key].state == "deleted" or known[key].wanted_revision != revision:
                documents.enqueue(self.connection, self.source, [(key, revision, len(text_of(written)))])
        documents.delete(self.connection, list(missing))

    def publish(self) -> None:
        documents.published(self.connection, [row.id for row in documents.due(self.connection, [self.source], 2)])

    def sweep(self) -> None:
        documents.sweep(self.connection)

    # --- workers ---

    def take(self) -> None:
        """Run a task of any age, also for a document that was not published."""
        ids = [row.id for row in documents.known(self.connection, self.source).values()]
        for number in self.random.sample(ids, len(ids)):
            if claim := claims.claim(self.connection, number, f"here:{len(self.taken)}"):
                self.turns.append(Work(claim, self.files.get(claim.key) if self.random.random() < 0.8 else None))
                return

    def read(self) -> None:
        for turn in self._some():
            turn.read = self.files.get(turn.claim.key)

    def finish(self) -> None:
        if turns := [turn for turn in self.turns if turn.read]:
            turn = self.random.choice(turns)
            self.turns.remove(turn)
            with contextlib.suppress(LostClaim):
                self._store(turn.claim, turn.read)

    def die(self) -> None:
        """End a worker without a trace, and end its lease."""
        for turn in self._some():
            self.turns.remove(turn)
            self._expire(turn)

    def expire(self) -> None:
        """End the lease of a slow worker that continues."""
        for turn in self._some():
            self._expire(turn)

    def hand_back(self) -> None:
        """Hand back the lease of a worker that seems dead but continues."""
        for row in self.connection.execute(
            "SELECT worker FROM task WHERE lease IS NOT NULL ORDER BY document_id LIMIT 1"
        ).fetchall():
            documents.hand_back(self.connection, [row[0]], self.random.choice((None, "a crash")))

    def beat(self) -> None:
        for turn in self._some():
            claims.heartbeat(self.connection, turn.claim)
            with contextlib.suppress(LostClaim):
                claims.progress(self.connection, turn.claim, "embedding", 1, 2)

    def wait(self) -> None:
        for turn in self._some():
            self.turns.remove(turn)
            claims.postpone(self.connection, turn.claim, "The embedder is unavailable.", 0)

    def stumble(self) -> None:
        for turn in self._some():
            self.turns.remove(turn)
            claims.record_crash(self.connection, turn.claim, "An unforeseen error.")

    def _some(self) -> list[Work]:
        return [self.random.choice(self.turns)] if self.turns else []

    def _expire(self, turn: Work) -> None:
        self.connection.execute(
            "UPDATE task SET leased_until = now() - interval '1 second' WHERE document_id = %s AND lease = %s",
            [turn.claim.id, turn.claim.lease],
        )

    def _store(self, claim: Claim, written: Written | None) -> None:
        """Store a text like worker/ingest.py, with one chunk for each paragraph."""
        assert written is not None
        text, chunks, start = text_of(written), [], 0
        for number, part in enumerate(text.split("\n\n")):
            chunks.append(Chunk(number, part, (), None, start, start + len(part)))
            start += len(part) + 2
        hashes = [embedding_inputs.hash_of(chunk.content) for chunk in chunks]
        vectors = np.ones((len(chunks), DIMENSIONS), np.float32)
        index.cache(self.connection, self.generation, claim.collection_id, hashes, vectors)
        with self.connection.transaction():
            claims.lock(self.connection, claim)
            digest = hashlib.sha256(text.encode()).digest()
            version = claims.set_text(self.connection, claim, Parsed(text, "text", "text"), _revision(written), digest)
            inputs = list(zip(chunks, hashes, strict=True))
            index.replace(self.connection, self.generation, claim.id, inputs, version, "english")
            claims.ready(self.connection, claim)

    # --- invariants ---

    def check(self) -> None:
        """Check that each stored text is one complete revision of one document, never older than the previous one."""
        for number, text in self.connection.execute(
            "SELECT t.document_id, t.content FROM document_text t JOIN document d ON d.id = t.document_id "
            "WHERE d.source_id = %s",
            [self.source],
        ).fetchall():
            found = MARK.search(text)
            assert found, text
            written = Written(int(found[1]), int(found[2]))
            assert text == text_of(written), f"{text!r} is not the text of one revision"
            rows = self.connection.execute(
                "SELECT ordinal, content FROM chunk WHERE document_id = %s ORDER BY ordinal", [number]
            ).fetchall()
            assert rows == list(enumerate(text.split("\n\n"))), f"the chunks {rows} are not those of {text!r}"
            before = self.stored.get(number, (0, 0))
            assert written.identity != before[0] or written.revision >= before[1], (
                f"{mark(written)} came after {before}"
            )
            self.stored[number] = (written.identity, written.revision)
        alone = self.connection.execute(
            "SELECT count(*) FROM document WHERE source_id = %s AND state = 'ready' AND live_revision IS NULL",
            [self.source],
        ).fetchone()
        assert alone == (0,), "a document is ready without a text"

    def end(self) -> None:
        """Let the remaining workers finish late, work in order, and check that the source is stored."""
        while self.turns:
            self.finish()
            self.die()
            self.check()
        for _ in range(3):
            self.scan()
            documents.sweep(self.connection)
            documents.retry(self.connection)
            for row in documents.known(self.connection, self.source).values():
                if claim := claims.claim(self.connection, row.id, "here:1"):
                    self._store(claim, self.files[row.key])
        self.check()
        rows = self.connection.execute(
            "SELECT d.key, d.state, (SELECT lease FROM task WHERE document_id = d.id), t.content FROM document d "
            "LEFT JOIN document_text t ON t.document_id = d.id "
            "WHERE d.source_id = %s AND d.state <> 'deleted' ORDER BY d.key",
            [self.source],
        ).fetchall()
        wanted = [(key, "ready", None, text_of(written)) for key, written in sorted(self.files.items())]
        assert sorted(rows) == wanted, f"at the end: {rows}, expected: {wanted}"


def _revision(written: Written) -> str:
    return f"{written.identity * 1000 + written.revision}-{len(text_of(written))}"
