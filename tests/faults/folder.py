"""A seeded writer of documents. Every paragraph names its document and revision, which makes a mix visible."""

import contextlib
import functools
import os
import random
import re
import shutil
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MARK = re.compile(r"doc(\d{6})r(\d{5})")
_WORDS = """heron weir boat reed otter lantern ferry harbour tide anchor rope mast gull pier lock bridge ripple willow
barge oar sail buoy kelp shell cliff dune marsh creek pond brook delta inlet cove reef shoal current eddy
rapids spring well""".split()


@dataclass(frozen=True, slots=True)
class Written:
    identity: int
    revision: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """Paragraphs in a document (about ten make a chunk): mostly small, every n-th document medium or large."""

    small: tuple[int, int] = (3, 28)
    middle: tuple[int, int] = (200, 600)
    large: tuple[int, int] = (3000, 3600)
    middle_every: int = 12
    large_every: int = 64

    def of(self, identity: int) -> int:
        lowest, highest = self.small
        if self.large_every and identity % self.large_every == 1:
            lowest, highest = self.large
        elif self.middle_every and identity % self.middle_every == 2:
            lowest, highest = self.middle
        return lowest + identity * 7919 % (highest - lowest + 1)


USUAL = Sizes()
SMALL = Sizes(middle_every=0, large_every=0)


def mark(written: Written) -> str:
    return f"doc{written.identity:06}r{written.revision:05}"


@functools.lru_cache(1024)
def text_of(identity: int, revision: int, paragraphs: int) -> str:
    """Return a document's text. A revision changes a fifth of every third document and all of the others."""
    lines = []
    for number in range(paragraphs + (revision % 3 if identity % 3 == 2 else 0)):
        changed = revision
        if identity % 3 == 2:
            while changed > 1 and (number * 31 + changed * 17 + identity) % 5:
                changed -= 1
        state = (identity * 7919 + number * 104729 + changed * 31 + 17) % 1_000_003
        words = []
        for _ in range(11):
            state = (state * 48271 + 11) % 2_147_483_647
            words.append(_WORDS[state % len(_WORDS)])
        lines.append(f"{mark(Written(identity, changed))} line {number}: {' '.join(words)}.")
    return "\n\n".join(lines) + "\n"


class Folder:
    """Write, change, rename, move, copy and delete documents below `root`. `documents`: key → its current content."""

    def __init__(self, root: Path, below: str, first: int, sizes: Sizes = USUAL, seed: int = 1) -> None:
        self.root, self.below, self.first, self.sizes = root, below, first, sizes
        self.random = random.Random(seed)
        self.documents: dict[str, Written] = {}
        self.dead: list[str] = []
        self.counts = dict.fromkeys(("added", "changed", "renamed", "moved", "copied", "deleted"), 0)
        self.newest: dict[int, int] = {}  # identity → its newest revision
        self._names = 0
        self._lock = threading.RLock()

    def text(self, written: Written) -> str:
        return text_of(written.identity, written.revision, self.sizes.of(written.identity))

    def is_one_revision(self, contents: Iterable[str]) -> bool:
        """Return True if all the texts come from one revision of one document of this writer."""
        contents = list(contents)
        marks = {(int(m[1]), int(m[2])) for content in contents for m in MARK.finditer(content)}
        if len({identity for identity, _ in marks}) != 1:
            return not marks
        identity, least = max(marks)
        newest = self.newest.get(identity, 0)
        return any(
            all(content in text for content in contents)
            for text in (self.text(Written(identity, revision)) for revision in range(least, newest + 1))
        )

    # --- operations: each returns the key of its document ---

    def add(self) -> str:
        with self._lock:
            written = Written(self.first + self.counts["added"], 1)
            self.counts["added"] += 1
            key = f"{self.below}/doc{written.identity:06}.txt"
            self._write(key, written)
            return key

    def fill(self, count: int) -> None:
        """Add many files at once, a hundred in each folder, like an unpacked archive."""
        with self._lock:
            for _ in range(count):
                written = Written(self.first + self.counts["added"], 1)
                key = f"{self.below}/box{self.counts['added'] // 100:03}/doc{written.identity:06}.txt"
                (self.root / key).parent.mkdir(parents=True, exist_ok=True)
                (self.root / key).write_text(self.text(written))
                self.documents[key], self.newest[written.identity] = written, 1
                self.counts["added"] += 1

    def change(self, key: str | None = None) -> str:
        with self._lock:
            key = key or self._any()
            identity = self.documents[key].identity
            self._write(key, Written(identity, self.newest[identity] + 1))
            self.counts["changed"] += 1
            return key

    def rename(self, key: str | None = None) -> str:
        with self._lock:
            return self._move(key or self._any(), "renamed", None)

    def move(self, key: str | None = None) -> str:
        with self._lock:
            return self._move(key or self._any(), "moved", f"{self.below}/box{self.random.randrange(8)}")

    def copy(self, key: str | None = None) -> str:
        with self._lock:
            key = key or self._any()
            copy = self._new_name(key, None)
            (shutil.copy2 if self.random.random() < 0.5 else shutil.copyfile)(self.root / key, self.root / copy)
            self.documents[copy] = self.documents[key]
            self.counts["copied"] += 1
            return copy

    def delete(self, key: str | None = None) -> str:
        with self._lock:
            key = key or self._any()
            (self.root / key).unlink()
            del self.documents[key]
            self.dead.append(key)
            self.counts["deleted"] += 1
            return key

    def step(self) -> str:
        """Make one change of any kind to an existing document."""
        if len(self.documents) < 3:
            return self.add()
        weights = {"change": 10, "rename": 3, "move": 2, "copy": 1, "delete": 3}
        (name,) = self.random.choices(list(weights), list(weights.values()))
        done: str = getattr(self, name)()
        return done

    def _any(self) -> str:
        return self.random.choice(list(self.documents))

    def _new_name(self, key: str, folder: str | None) -> str:
        self._names += 1
        old, _, name = key.rpartition("/")
        path = folder or old
        (self.root / path).mkdir(parents=True, exist_ok=True)
        return f"{path}/{name.partition('-')[0].removesuffix('.txt')}-{self._names}.txt"

    def _move(self, key: str, how: str, folder: str | None) -> str:
        new = self._new_name(key, folder)
        (self.root / key).rename(self.root / new)
        self.documents[new] = self.documents.pop(key)
        self.dead.append(key)
        self.counts[how] += 1
        return new

    def _write(self, key: str, written: Written) -> None:
        """Write a file like an editor (through a temporary file), like a program, or like a slow copy."""
        path, data = self.root / key, self.text(written).encode()
        path.parent.mkdir(parents=True, exist_ok=True)
        self.newest[written.identity] = written.revision
        self.documents[key] = written
        way = self.random.random()
        if way < 0.7:
            temporary = path.with_name(f".{path.name}.tmp")
            temporary.write_bytes(data)
            os.replace(temporary, path)
        elif way < 0.9:
            path.write_bytes(data)
        else:
            with path.open("wb", buffering=0) as file:
                file.write(data[: len(data) // 2])
                time.sleep(0.05)
                file.write(data[len(data) // 2 :])
        time.sleep(0.01)  # the kernel's clock of files ticks every 4 ms: two writes within one tick would look like one


def files(root: Path) -> dict[str, bytes]:
    """Return key → content of every file that is not hidden."""
    found = {}
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            with contextlib.suppress(FileNotFoundError):
                if not name.startswith("."):
                    found[path.relative_to(root).as_posix()] = path.read_bytes()
    return found
