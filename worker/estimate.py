"""`askfolder estimate`: what indexing a folder would cost. Nothing is sent, and no running system is needed.

python -m worker.estimate DIR [--json]
"""

import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from shared import prices
from shared.errors import AskfolderError, SettingsError
from shared.log import silence
from shared.models import Parsed
from shared.providers.choice import embedder_of
from shared.providers.embedder import Embedder
from shared.settings import Settings, load
from shared.text.printable import dollars, printable
from worker.indexing import contexts
from worker.indexing.chunking import chunk
from worker.indexing.inputs import chunk_sizes, hash_of, inputs
from worker.parsing.parser import Parser
from worker.source.folder import FolderSource

SHOWN = 5  # unreadable files in the text


@dataclass(frozen=True, slots=True)
class Bill:
    """The bill of one model. `tokens`: upper estimates, by the names of `prices.cost`'s parameters.

    `to`: the receiver of the texts; empty if they stay on this machine. `dollars`: None if no price is known.
    """

    model: str
    to: str
    tokens: dict[str, int]
    dollars: float | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """`files`, `bytes`: of all files. `formats`: readable files by type. `unreadable`: the other files, with reasons.

    `characters`, `chunks`, `tokens`: of the readable files. Tokens are exact for the local model, and estimated from
    above for a provider's (shared/providers/embedder.py).
    """

    folder: str
    files: int
    bytes: int
    formats: dict[str, int]
    unreadable: dict[str, str]
    characters: int
    chunks: int
    tokens: int
    embedding: Bill
    contexts: Bill | None

    @property
    def dollars(self) -> float | None:
        """The sum of the bills; None if a price is not known."""
        parts = [bill.dollars for bill in (self.embedding, self.contexts) if bill is not None]
        return None if None in parts else sum(part for part in parts if part is not None)


def estimate(settings: Settings, folder: Path, report: Callable[[int, int], None]) -> Estimate:
    """Read and chunk the files of a folder with the current settings; count copies once, as they are paid for once.

    `report`: called with the number of files done, and of all files. Raises PermanentError if the folder is unreadable.
    """
    if not folder.is_dir():
        raise SettingsError(f"There is no folder {folder}: name an existing folder, or leave it out to use the inbox.")
    source = FolderSource(folder)
    listing = source.discover()
    files = sorted(listing.files, key=lambda file: file.key)
    unreadable = dict.fromkeys(listing.closed, "It cannot be opened: give this user the right to read it.")
    with contextlib.closing(embedder_of(settings)) as embedder, Parser.of(settings) as parser:
        counts = _Counts(settings, embedder)
        for done, file in enumerate(files):
            report(done, len(files))
            name = file.key.rpartition("/")[2]
            try:
                counts.add(name, parser.parse(source.path(file.key), name))
            except AskfolderError as error:
                unreadable[file.key] = str(error)
        report(len(files), len(files))
    size, sums = sum(file.size for file in files), (counts.characters, counts.chunks, counts.tokens)
    embedding = _bill(settings, embedder.name, embedder.model, {"input": counts.embedded})
    written = _bill(settings, "claude", settings.context_model, dict(counts.written)) if counts.contexts else None
    return Estimate(str(folder), len(files), size, dict(counts.formats), unreadable, *sums, embedding, written)


def _bill(settings: Settings, provider: str, model: str, tokens: dict[str, int]) -> Bill:
    """Make the bill of a provider. The prices of another server, at an address, are known only from the settings."""
    if provider == "local":
        return Bill(model, "", tokens, 0.0)
    name, address = {
        "openai": ("OpenAI", settings.openai_base_url),
        "voyage": ("Voyage", settings.voyage_base_url),
        "claude": ("Anthropic", settings.anthropic_base_url),
    }[provider]
    known = {**({} if address else prices.PRICES), **prices.read(settings.prices)}
    return Bill(model, address or name, tokens, prices.cost(model, known=known, **{"input": 0, **tokens}))


class _Counts:
    """The sums of documents. `embedded`: tokens to embed; `written`: tokens that contexts take."""

    def __init__(self, settings: Settings, embedder: Embedder) -> None:
        self.contexts = settings.context == "claude"
        self.sizes = chunk_sizes(embedder, settings.chunk_tokens, self.contexts)
        self.embedder = embedder
        self.characters = self.chunks = self.tokens = self.embedded = 0
        self.formats, self.written = Counter[str](), Counter[str]()
        self._texts, self._inputs = set[bytes](), set[bytes]()

    def add(self, name: str, parsed: Parsed) -> None:
        chunks = chunk(parsed, self.embedder.count, *self.sizes)
        self.formats[parsed.format] += 1
        self.characters += len(parsed.text)
        self.chunks += len(chunks)
        self.tokens += sum(self.embedder.count([c.content for c in chunks]))
        text = hash_of(parsed.text)
        if text in self._texts:
            return
        self._texts.add(text)
        # With contexts, equal chunks of two documents are embedded twice: each has a context of its own.
        scope = text if self.contexts else b""
        by_hash = {scope + hash_of(made): made for made in inputs(self.embedder, parsed.title, chunks)}
        new = {key: made for key, made in by_hash.items() if key not in self._inputs}
        self._inputs.update(new)
        self.embedded += sum(self.embedder.count(list(new.values())))
        if self.contexts:
            self.embedded += contexts.OUTPUT_TOKENS * len(new)
            self.written += contexts.tokens(name, parsed, chunks)


def describe(result: Estimate) -> str:
    """Return the estimate as text for people."""
    types = ", ".join(f"{count:,} {name}" for name, count in sorted(result.formats.items(), key=lambda kind: -kind[1]))
    lines = [
        f"{result.folder}: {result.files:,} files, {result.bytes / 1e6:,.1f} MB",
        f"  can be read      {sum(result.formats.values()):,}{f' ({types})' if types else ''}",
    ]
    if result.unreadable:
        lines.append(f"  cannot be read   {len(result.unreadable):,}")
        lines += [f"    {_reason(key, reason)}" for key, reason in list(result.unreadable.items())[:SHOWN]]
        if (more := len(result.unreadable) - SHOWN) > 0:
            lines.append(f"    … and {more:,} more; --json lists all")
    lines.append(f"  chunks           {result.chunks:,}, {result.tokens:,} tokens")
    lines.append(f"  embedding        {_describe_bill(result.embedding)}")
    off = "off; ASKFOLDER_CONTEXT=claude turns them on"
    lines.append(f"  contexts         {_describe_bill(result.contexts) if result.contexts else off}")
    if any(bill and bill.to for bill in (result.embedding, result.contexts)):
        total = _price(result.dollars, "no price is known for all of it")
        lines.append(f"  together         {total}; what is indexed already is not paid for again")
    return "\n".join([*lines, "Nothing was sent."])


def _describe_bill(bill: Bill) -> str:
    if not bill.to:
        return f"{bill.model}, on this machine: nothing leaves it, and it costs nothing"
    names = {"input": "in", "output": "out", "cache_write": "written to the cache", "cache_read": "read from it"}
    tokens = ", ".join(f"{bill.tokens[key]:,} {word}" for key, word in names.items() if bill.tokens.get(key))
    price = _price(bill.dollars, f"no price is known for {bill.model}")
    return f"{bill.model}, all texts go to {bill.to}: {price} (tokens: {tokens or 'none'})"


def _price(amount: float | None, unknown: str) -> str:
    return unknown if amount is None else f"at most about {dollars(amount, 2 if amount >= 1 else 4)}"


def _reason(key: str, reason: str) -> str:
    """Return why a file cannot be read, with its path; a reason may begin with its name."""
    key, name = printable(key), printable(key.rpartition("/")[2])
    return key.removesuffix(name) + reason if reason.startswith(name) else f"{key}: {reason}"


class _Progress:
    """Reports files done on standard error: on a terminal in one line, in a log in a line every ten seconds."""

    def __init__(self) -> None:
        self.screen = sys.stderr.isatty()
        self.pause = 0.2 if self.screen else 10.0
        self.next = time.monotonic() + self.pause

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() >= self.next or (self.screen and done == total):
            self.next = time.monotonic() + self.pause
            end = "\r" if self.screen and done < total else "\n"
            print(f"{done:,} of {total:,} files", end=end, file=sys.stderr, flush=True)


def main() -> None:
    silence()
    try:
        result = estimate(load(), Path(sys.argv[1]), _Progress())
    except AskfolderError as error:
        sys.exit(str(error))
    if "--json" in sys.argv[2:]:
        print(json.dumps({**asdict(result), "dollars": result.dollars}, ensure_ascii=False, indent=2))
    else:
        print(describe(result))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
