"""What a folder will be and cost, before anything is sent: `askfolder estimate`. It needs no running system.

python -m worker.estimate DIR [--json]
"""

import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import structlog

from shared import prices
from shared.errors import AskfolderError, SettingsError
from shared.models import Parsed
from shared.providers.choice import embedder_of
from shared.providers.embedder import Embedder
from shared.settings import Settings, load
from worker.indexing import contexts
from worker.indexing.chunking import chunk
from worker.indexing.inputs import chunk_sizes, hash_of, inputs
from worker.parsing.parser import Parser
from worker.source.folder import FolderSource

SHOWN = 5  # files that cannot be read, in words


@dataclass(frozen=True, slots=True)
class Bill:
    """What one model gets and takes. `tokens`: by the names of `prices.cost`'s parameters, estimated from above.

    `to`: who gets it; empty: it stays on this machine. `dollars`: None where no price is known.
    """

    model: str
    to: str
    tokens: dict[str, int]
    dollars: float | None


@dataclass(slots=True)
class Estimate:
    """`bytes`, `files`: of all files. `formats`: how many can be read, by type. `unreadable`: the others, with the reasons.

    `characters`, `chunks`, `tokens`: of what can be read; tokens as the embedder counts them, its own model exactly, a
    provider's from above (shared/providers/embedder.py).
    """

    folder: str
    files: int = 0
    bytes: int = 0
    formats: dict[str, int] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    characters: int = 0
    chunks: int = 0
    tokens: int = 0
    embedding: Bill | None = None
    contexts: Bill | None = None

    @property
    def dollars(self) -> float | None:
        """Of everything; None where a part has no known price."""
        parts = [bill.dollars for bill in (self.embedding, self.contexts) if bill is not None]
        return None if None in parts else sum(part for part in parts if part is not None)


def estimate(settings: Settings, folder: Path, say: Callable[[int, int], None]) -> Estimate:
    """Reads and chunks what a folder holds, with what is set up. `say`: files done, files in all.

    What is paid for once, such as a copy, is counted once. Raises PermanentError when the folder cannot be read.
    """
    if not folder.is_dir():
        raise SettingsError(f"There is no folder {folder}: name one that is there, or none for the inbox.")
    source = FolderSource(folder)
    listing = source.discover()
    result = Estimate(str(folder), len(listing.found), sum(file.size for file in listing.found))
    closed = "It cannot be looked into: give this user the right to read it."
    result.unreadable.update(dict.fromkeys(listing.closed, closed))
    with (
        contextlib.closing(embedder_of(settings)) as embedder,
        Parser(
            memory_bytes=settings.parse_memory_mb << 20,
            seconds=settings.parse_seconds,
            max_text_chars=settings.max_text_mb * 1_000_000,
            max_file_bytes=settings.max_file_mb << 20,
        ) as parser,
    ):
        counting = _Counting(settings, embedder, result)
        for done, file in enumerate(sorted(listing.found, key=lambda file: file.key)):
            say(done, result.files)
            name = file.key.rpartition("/")[2]
            try:
                counting.add(name, parser.parse(source.path(file.key), name))
            except AskfolderError as error:
                result.unreadable[file.key] = str(error)
        say(result.files, result.files)
        result.embedding = _embedding(settings, embedder, counting.embedded)
    if settings.context == "claude":
        at, written = settings.anthropic_base_url, counting.written
        dollars = prices.cost(
            settings.context_model,
            written["input"],
            written["output"],
            written["cache_write"],
            written["cache_read"],
            _known(settings, at),
        )
        result.contexts = Bill(settings.context_model, at or "Anthropic", dict(written), dollars)
    return result


class _Counting:
    """Adds up documents. `embedded`: tokens to embed; `written`: those that contexts take."""

    def __init__(self, settings: Settings, embedder: Embedder, result: Estimate) -> None:
        self.contexts = settings.context == "claude"
        self.sizes = chunk_sizes(embedder, settings.chunk_tokens, self.contexts)
        self.embedder, self.result = embedder, result
        self.embedded, self.written = 0, Counter[str]()
        self._texts: set[bytes] = set()
        self._inputs: set[bytes] = set()

    def add(self, name: str, parsed: Parsed) -> None:
        chunks = chunk(parsed, self.embedder.count, *self.sizes)
        self.result.formats[parsed.format] = self.result.formats.get(parsed.format, 0) + 1
        self.result.characters += len(parsed.text)
        self.result.chunks += len(chunks)
        self.result.tokens += sum(self.embedder.count([c.content for c in chunks]))
        text = hash_of(parsed.text)
        if text in self._texts:
            return
        self._texts.add(text)
        # With contexts, equal chunks of two documents are embedded twice: each has its own.
        scope = text if self.contexts else b""
        new = {scope + hash_of(made): made for made in inputs(self.embedder, parsed.title, chunks)}
        new = {key: made for key, made in new.items() if key not in self._inputs}
        self._inputs.update(new)
        self.embedded += sum(self.embedder.count(list(new.values())))
        if self.contexts:
            self.embedded += contexts.OUTPUT_TOKENS * len(new)
            self.written += contexts.tokens(name, parsed, chunks)


def _embedding(settings: Settings, embedder: Embedder, tokens: int) -> Bill:
    if embedder.name == "local":
        return Bill(embedder.model, "", {"input": tokens}, 0.0)
    at = {"openai": settings.openai_base_url, "voyage": settings.voyage_base_url}[embedder.name]
    dollars = prices.cost(embedder.model, tokens, known=_known(settings, at))
    return Bill(
        embedder.model, at or {"openai": "OpenAI", "voyage": "Voyage"}[embedder.name], {"input": tokens}, dollars
    )


def _known(settings: Settings, at: str) -> dict[str, prices.Price]:
    """Prices that hold; on another server, at an address, only those that somebody set."""
    return {**({} if at else prices.PRICES), **prices.read(settings.prices)}


# --- in words


def described(result: Estimate) -> str:
    """The estimate for people."""
    readable = sum(result.formats.values())
    types = ", ".join(f"{count:,} {name}" for name, count in sorted(result.formats.items(), key=lambda one: -one[1]))
    lines = [
        f"{result.folder}: {result.files:,} files, {result.bytes / 1e6:,.1f} MB",
        f"  can be read      {readable:,}{f' ({types})' if types else ''}",
    ]
    if result.unreadable:
        lines.append(f"  cannot be read   {len(result.unreadable):,}")
        lines += [f"    {_reason(key, reason)}" for key, reason in list(result.unreadable.items())[:SHOWN]]
        if (more := len(result.unreadable) - SHOWN) > 0:
            lines.append(f"    … and {more:,} more; --json lists all")
    lines.append(f"  chunks           {result.chunks:,}, {result.tokens:,} tokens")
    if result.embedding:
        lines.append(f"  embedding        {_bill(result.embedding)}")
    lines.append(
        f"  contexts         {_bill(result.contexts) if result.contexts else 'off; ASKFOLDER_CONTEXT=claude turns them on'}"
    )
    if any(bill and bill.to for bill in (result.embedding, result.contexts)):
        total = (
            "no price is known for all of it" if result.dollars is None else f"at most about {_dollars(result.dollars)}"
        )
        lines.append(f"  together         {total}; what is indexed already is not paid for again")
    lines.append("Nothing was sent.")
    return "\n".join(lines)


def _bill(bill: Bill) -> str:
    if not bill.to:
        return f"{bill.model}, on this machine: nothing leaves it, and nobody is paid"
    names = {"input": "in", "output": "out", "cache_write": "written to the cache", "cache_read": "read from it"}
    tokens = ", ".join(f"{bill.tokens[key]:,} {word}" for key, word in names.items() if bill.tokens.get(key))
    price = f"no price is known for {bill.model}" if bill.dollars is None else f"at most about {_dollars(bill.dollars)}"
    return f"{bill.model}, all texts go to {bill.to}: {price} (tokens: {tokens or 'none'})"


def _dollars(amount: float) -> str:
    return f"${amount:,.2f}" if amount >= 1 else f"${amount:.4f}"


def _reason(key: str, reason: str) -> str:
    """Why a file cannot be read, with its path where the reason begins with its name alone."""
    key, name = _printable(key), _printable(key.rpartition("/")[2])
    return key.removesuffix(name) + reason if reason.startswith(name) else f"{key}: {reason}"


def _printable(name: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)


class _Progress:
    """Files done on standard error: a line that is written over on a screen, now and then one in a log."""

    def __init__(self) -> None:
        self.screen = sys.stderr.isatty()
        self.pause = 0.2 if self.screen else 10.0
        self.next = time.monotonic() + self.pause

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() >= self.next or (self.screen and done == total):
            self.next = time.monotonic() + self.pause
            print(
                f"{done:,} of {total:,} files",
                end="\r" if self.screen and done < total else "\n",
                file=sys.stderr,
                flush=True,
            )


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50), cache_logger_on_first_use=False)
    try:
        result = estimate(load(), Path(sys.argv[1]), _Progress())
    except AskfolderError as error:
        sys.exit(str(error))
    if "--json" in sys.argv[2:]:
        print(json.dumps({**asdict(result), "dollars": result.dollars}, ensure_ascii=False, indent=2))
    else:
        print(described(result))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
