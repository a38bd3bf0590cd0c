"""Inputs of the embedder: chunk sizes, and the template of title, headings and content."""

import hashlib

from shared.models import Chunk
from shared.providers.embedder import Embedder

ROOM = 400  # tokens, as providers' embedders count, for a context beside a chunk

TEMPLATE = "2"


def embedding_input(header: str, chunk: Chunk) -> str:
    """What is embedded: title and heading path, context, content. The file's name is not in it: a rename embeds nothing."""
    return "\n\n".join(part for part in (header, chunk.context, chunk.content) if part)


def hash_of(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


HEADER_TOKENS = 48  # of title and heading path in what is embedded


def chunk_sizes(embedder: Embedder, wanted: int, contexts: bool = False) -> tuple[int, int]:
    """Tokens of a chunk's content, and of its overlap: what is wanted, or what the model reads beside the header, up to 400.

    A provider refuses what is too long (`contexts`: with room for them); a local model reads it in parts, if that is wanted.
    """
    room = embedder.max_tokens - HEADER_TOKENS - 2 - (ROOM if contexts and embedder.name != "local" else 0)
    max_tokens = min(room, wanted or 400) if embedder.name != "local" else wanted or min(room, 400)
    return max_tokens, max_tokens // 7


def inputs(embedder: Embedder, title: str | None, chunks: list[Chunk]) -> list[str]:
    """What is embedded for each chunk of a document."""
    headers = _headers(embedder, title, chunks)
    return [embedding_input(headers[c.heading_path], c) for c in chunks]


def _headers(embedder: Embedder, title: str | None, chunks: list[Chunk]) -> dict[tuple[str, ...], str]:
    """Heading path → title and headings as one line of at most HEADER_TOKENS tokens, the innermost kept."""
    headers: dict[tuple[str, ...], str] = {}
    for path in {c.heading_path for c in chunks}:
        parts = list(dict.fromkeys(part for part in (title or "", *path) if part))
        while len(parts) > 1 and embedder.count([" > ".join(parts)])[0] > HEADER_TOKENS:
            del parts[1 if len(parts) > 2 else 0]
        line = " > ".join(parts)
        while line and embedder.count([line])[0] > HEADER_TOKENS:
            line = line[: len(line) * 3 // 4]
        headers[path] = line
    return headers
