"""Inputs of the embedder: a header of title and headings, then context and content. Without the file name, since a
rename must embed nothing.
"""

import hashlib
from collections.abc import Sequence

from shared.models import Chunk
from shared.providers.embedder import Embedder

TEMPLATE = "2"  # increase it when inputs change: a generation is built with one template
HEADER_TOKENS = 48
ROOM = 400  # tokens for a context, as providers' embedders count


def chunk_sizes(embedder: Embedder, wanted: int, contexts: bool = False) -> tuple[int, int]:
    """Return the tokens of a chunk's content, and of its overlap. `wanted`: 0 for as many as fit, up to 400.

    A provider refuses an input that is too long; a local model reads it in parts, if `wanted` says so.
    """
    room = embedder.max_tokens - HEADER_TOKENS - 2 - (ROOM if contexts and embedder.name != "local" else 0)
    max_tokens = min(room, wanted or 400) if embedder.name != "local" else wanted or min(room, 400)
    return max_tokens, max_tokens // 7


def inputs(embedder: Embedder, title: str | None, chunks: Sequence[Chunk]) -> list[str]:
    """Return the embedder's input for each chunk of a document."""
    headers = {path: _header(embedder, title, path) for path in {c.heading_path for c in chunks}}
    return ["\n\n".join(filter(None, (headers[c.heading_path], c.context, c.content))) for c in chunks]


def _header(embedder: Embedder, title: str | None, path: tuple[str, ...]) -> str:
    """Join title and headings in one line of at most HEADER_TOKENS tokens; the innermost headings are kept."""
    parts = list(dict.fromkeys(part for part in (title or "", *path) if part))
    while len(parts) > 1 and embedder.count([" > ".join(parts)])[0] > HEADER_TOKENS:
        del parts[1 if len(parts) > 2 else 0]
    line = " > ".join(parts)
    while line and embedder.count([line])[0] > HEADER_TOKENS:
        line = line[: len(line) * 3 // 4]
    return line


def hash_of(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
