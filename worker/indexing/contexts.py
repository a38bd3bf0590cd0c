"""Contexts: a sentence or two by Claude that situate a chunk within its document. They are searched, never quoted.

After "Introducing Contextual Retrieval" (Anthropic 2024). The document comes first in a request, so that later requests
read it from the prompt cache.
"""

import json
import re
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.db import Connection
from shared.ledger.claims import Claim
from shared.ledger.generations import Generation
from shared.log import log
from shared.models import Chunk, Parsed
from shared.providers.claude import Claude, prompt
from shared.providers.meter import Meter
from shared.settings import Settings
from shared.text.tokens import encodable, estimate_tokens
from worker.indexing import inputs

WINDOW_TOKENS = 80_000  # of a document in one request, estimated from above: a prompt over 100,000 is dearer
# Chunks of one request. At claude-haiku-5-5's prices a document of 8,000 tokens in 40 chunks costs $.0070 with 1 chunk
# a request, .0039 with 10, .0038 with 20; one of 80,000 tokens in 400 chunks $.36, .068 and .052: more gains little.
AT_ONCE = 10
CACHED_TOKENS = 512  # a shorter beginning is not cached
LONGEST = 600  # characters of a context
OUTPUT_TOKENS = 115  # of a context and its tags, for estimates: contexts are rarely longer
MAX_TOKENS = 4096  # of an answer and the thoughts before it
SECONDS = 180.0  # for one request, retries included

SYSTEM = prompt(__file__, "contexts.md")
_CONTEXT = re.compile(r'<context number="?(\d{1,4})"?\s*>(.*?)</context>', re.DOTALL)


def template(settings: Settings) -> str:
    """Name the form of the embedded text. A generation with contexts differs from one without."""
    return f"{inputs.TEMPLATE}/{settings.context_model}" if settings.context == "claude" else inputs.TEMPLATE


def model_of(generation: Generation) -> str:
    """The model that wrote a generation's contexts. Empty: the generation has none."""
    return generation.template.partition("/")[2]


# --- requests


@dataclass(frozen=True, slots=True)
class Request:
    """Chunks whose contexts are requested at once, and the characters of the text that surrounds them.

    `cached`: further requests have the same beginning, so that writing it to the cache, a quarter dearer, pays off.
    """

    start: int
    end: int
    chunks: tuple[Chunk, ...]
    cached: bool


def plan(text: str, chunks: Sequence[Chunk]) -> list[Request]:
    """Divide chunks of a text into requests, in the order in which they are sent. Equal contents are requested once."""
    tokens = estimate_tokens(text)
    size = len(text)
    if tokens > WINDOW_TOKENS:
        size = max(10_000, int(size * WINDOW_TOKENS / tokens) // 10_000 * 10_000)
    windows: dict[int, list[Chunk]] = defaultdict(list)
    for chunk in {chunk.content: chunk for chunk in chunks}.values():
        windows[_window(chunk, len(text), size)].append(chunk)
    return [
        Request(start, min(start + size, len(text)), tuple(inside[at : at + AT_ONCE]), len(inside) > AT_ONCE)
        for start, inside in sorted(windows.items())
        for at in range(0, len(inside), AT_ONCE)
    ]


def _window(chunk: Chunk, length: int, size: int) -> int:
    """Return the start of the window with its middle nearest to the chunk's middle. Windows overlap by half."""
    step = max(size // 2, 1)
    last = max(0, -(-(length - size) // step))
    middle = (chunk.char_start + chunk.char_end) // 2
    return step * min(last, max(0, round(middle / step) - 1))


def _beginning(name: str, parsed: Parsed, start: int, end: int) -> str:
    """The document or its window, as JSON: its text cannot end the value, since quotes in it are escaped."""
    complete = end - start == len(parsed.text)
    part = {} if complete else {"characters": f"{start} to {end} of {len(parsed.text)}"}
    return _json({"document": parsed.title or name, **part, "text": parsed.text[start:end]})


def _questions(chunks: Sequence[Chunk]) -> str:
    return "\n".join(
        _json({"number": number, "headings": list(chunk.heading_path), "chunk": chunk.content})
        for number, chunk in enumerate(chunks, 1)
    )


def _json(value: Mapping[str, Any]) -> str:
    return encodable(json.dumps(value, ensure_ascii=False))


def tokens(name: str, parsed: Parsed, chunks: Sequence[Chunk]) -> Counter[str]:
    """Estimate from above the tokens of a document's contexts, by the names of the parameters of `prices.cost`."""
    spent: Counter[str] = Counter()
    beginnings: dict[int, int] = {}
    for request in plan(parsed.text, chunks):
        first = request.start not in beginnings
        if first:
            beginning = _beginning(name, parsed, request.start, request.end)
            beginnings[request.start] = estimate_tokens(SYSTEM) + estimate_tokens(beginning)
        cached = request.cached and beginnings[request.start] >= CACHED_TOKENS
        kind = "input" if not cached else "cache_write" if first else "cache_read"
        spent[kind] += beginnings[request.start]
        spent["input"] += estimate_tokens(_questions(request.chunks))
        spent["output"] += OUTPUT_TOKENS * len(request.chunks)
    return spent


# --- writing


@dataclass(frozen=True, slots=True)
class ContextWriter:
    """Claude, or a model of another server with the same interface, as the author of contexts."""

    claude: Claude
    model: str

    @classmethod
    def of(cls, settings: Settings, meter: Meter) -> "ContextWriter | None":
        """None if the settings ask for no contexts."""
        claude = None if settings.context == "off" else Claude.of(settings, meter)
        return cls(claude, settings.context_model) if claude else None

    def write(self, name: str, parsed: Parsed, chunks: Sequence[Chunk]) -> Iterator[dict[str, str]]:
        """Yield content → context after each request. A context is empty if the model gives none.

        Chunks that an answer leaves out are requested once more, each alone; a refused answer leaves out all of them.
        Raises as `Claude.complete` does.
        """
        requests = deque(plan(parsed.text, chunks))
        while requests:
            request = requests.popleft()
            written = self._ask(name, parsed, request)
            missing = [chunk for chunk in request.chunks if chunk.content not in written]
            if len(request.chunks) == 1:
                written |= dict.fromkeys((chunk.content for chunk in missing), "")
            else:
                cached = request.cached or len(missing) > 1
                requests.extend(Request(request.start, request.end, (chunk,), cached) for chunk in missing)
            yield written

    def _ask(self, name: str, parsed: Parsed, request: Request) -> dict[str, str]:
        text = _beginning(name, parsed, request.start, request.end)
        cache = {"cache_control": {"type": "ephemeral"}} if request.cached else {}
        questions = _questions(request.chunks)
        content: list[dict[str, Any]] = [{"type": "text", "text": text, **cache}, {"type": "text", "text": questions}]
        reply = self.claude.complete("context", self.model, SYSTEM, content, MAX_TOKENS, SECONDS)
        answer = "" if reply.stop_reason == "refusal" else reply.text
        written = {
            request.chunks[number - 1].content: context
            for number, context in read_contexts(answer).items()
            if 1 <= number <= len(request.chunks)
        }
        log.info(
            f"{len(written)} of {len(request.chunks)} contexts written for {name}",
            action="ingest.contexts",
            **reply.tokens.by_name(),
        )
        return written


def read_contexts(answer: str) -> dict[int, str]:
    """Read number → context: one paragraph of at most LONGEST characters. A context that was cut off is left out."""
    return {int(number): _paragraph(text) for number, text in _CONTEXT.findall(answer)}


def _paragraph(text: str) -> str:
    text = " ".join(encodable(text).replace("\0", "").split())
    return text if len(text) <= LONGEST else text[:LONGEST].rpartition(" ")[0] or text[:LONGEST]


# --- the cache in the database


def cached(connection: Connection, claim: Claim, model: str, text: str, chunks: Sequence[Chunk]) -> dict[str, str]:
    """Return content → context of the stored contexts, for this document or a copy of it in the collection.

    The contexts of a copy are stored for this document too.
    """
    contents = {inputs.hash_of(chunk.content): chunk.content for chunk in chunks}
    rows = connection.execute(
        """
        WITH found AS (
            SELECT DISTINCT ON (content_hash) content_hash, context
            FROM context_cache c JOIN document d ON d.id = c.document_id
            WHERE (c.document_id = %(document)s OR (c.text_hash = %(text)s AND d.collection_id = %(collection)s))
              AND model = %(model)s AND content_hash = ANY(%(contents)s)
            ORDER BY content_hash, document_id = %(document)s DESC
        ), own AS (
            INSERT INTO context_cache (document_id, model, content_hash, text_hash, context)
            SELECT %(document)s, %(model)s, content_hash, %(text)s, context FROM found
            ON CONFLICT (document_id, model, content_hash) DO UPDATE SET text_hash = excluded.text_hash
            WHERE context_cache.text_hash <> excluded.text_hash
        )
        SELECT content_hash, context FROM found
        """,
        {
            "document": claim.id,
            "collection": claim.collection_id,
            "model": model,
            "text": inputs.hash_of(text),
            "contents": list(contents),
        },
    )
    return {contents[content_hash]: context for content_hash, context in rows}


def forget_unasked(connection: Connection) -> None:
    """Remove the documents without contexts from a generation that is being built with them, to ingest them again."""
    connection.execute(
        """
        WITH unasked AS (
            SELECT DISTINCT c.generation_id, c.document_id
            FROM chunk c JOIN generation g ON g.id = c.generation_id
            WHERE g.state = 'building' AND strpos(g.template, '/') > 0 AND c.context IS NULL
        ), gone AS (
            DELETE FROM chunk c USING unasked u
            WHERE (c.generation_id, c.document_id) = (u.generation_id, u.document_id)
        )
        DELETE FROM document_generation h USING unasked u
        WHERE (h.generation_id, h.document_id) = (u.generation_id, u.document_id)
        """
    )


def keep(connection: Connection, claim: Claim, model: str, text: str, written: Mapping[str, str]) -> None:
    """Commit contexts by the content of their chunks."""
    text_hash = inputs.hash_of(text)
    with connection.transaction(), connection.cursor() as cursor:
        cursor.executemany(
            """
            INSERT INTO context_cache (document_id, model, content_hash, text_hash, context)
            VALUES (%s, %s, %s, %s, %s) ON CONFLICT DO NOTHING
            """,
            [(claim.id, model, inputs.hash_of(content), text_hash, context) for content, context in written.items()],
        )
