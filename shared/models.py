"""The values that travel between the stages."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading in the extracted text. `start`: character offset of its line; `level`: 1 (highest) to 6."""

    start: int
    level: int
    title: str


@dataclass(frozen=True, slots=True)
class Parsed:
    """A document's extracted text and what is known of its structure.

    `text` never holds NUL or lone surrogates. `kind`: how its blocks are told apart ("markdown" also for everything that was
    converted to Markdown: headings `#`, fences, pipe tables). `pages`: (character offset, number) where each page or slide
    starts, ascending, empty where the format has none. `title` comes from inside the document, never from its name.
    `metadata`: what the document says of itself, JSON of at most 16 kB, names in lower case (author, date, created, modified,
    language, keywords, subject, description, and others). `dated`: its own date, where it says one.
    """

    text: str
    format: str  # "pdf", "docx", "markdown", "html", "text", "rst", "csv", "code", …
    kind: str  # "markdown" | "text" | "code"
    title: str | None = None
    headings: tuple[Heading, ...] = ()
    pages: tuple[tuple[int, int], ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    dated: datetime | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a document: `parsed.text[char_start:char_end] == content`.

    `context`: what a model wrote to situate it within its document, searched with it and never quoted. Empty: it gave none;
    None: none was asked for.
    """

    ordinal: int
    content: str
    heading_path: tuple[str, ...]
    page: int | None
    char_start: int
    char_end: int
    context: str | None = None


@dataclass(frozen=True, slots=True)
class Passage:
    """A chunk that was found for a question. `score`: higher is better, comparable within one result only.

    `rerank_score`: likewise, by the reranker; None where none gave one. Passages that have it come first, ordered by it.
    """

    chunk_id: int
    document_id: int
    source: str
    title: str | None
    content: str
    score: float
    page: int | None
    heading: tuple[str, ...]
    char_start: int
    char_end: int
    cosine: float | None = None
    bm25: float | None = None
    rerank_score: float | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """A search that the model asked for before it answered. `passages`: those that no earlier search found."""

    number: int
    query: str
    passages: tuple[Passage, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Waiting:
    """The model is silent. It comes about every half second, so that a client that has left is noticed."""


@dataclass(frozen=True, slots=True)
class Citation:
    """Words of a document that carry a sentence of the answer; `document_text[char_start:char_end] == quote`, checked."""

    number: int
    document_id: int
    chunk_id: int
    source: str
    title: str | None
    page: int | None
    heading: tuple[str, ...]
    char_start: int
    char_end: int
    quote: str


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of an answer as it is shown: its text with the marks and the whitespace that ends it.

    `status`: supported | partly | unsupported. `citations`: the numbers of those that it stands on.
    """

    text: str
    status: str
    citations: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """`text` carries the marks [1], [2] … of its citations; the texts of its sentences, joined and stripped, are it.

    `verdict`: grounded (every sentence is supported), partial, no_answer (then there are no sentences).
    `dropped`: citations that do not stand; `removed`: sentences left out because nothing supports them.
    """

    text: str
    citations: tuple[Citation, ...]
    verdict: str
    answerer: str  # "claude" | "extractive"
    usage: dict[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    sentences: tuple[Sentence, ...] = ()
    dropped: int = 0
    removed: int = 0


NO_ANSWER = "I don't have information on that."


@dataclass(slots=True)
class SearchResult:
    """Passages, best first; milliseconds by stage; what went less well, a sentence each. `question`: as it was searched for."""

    question: str
    passages: list[Passage] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)


Event = SearchResult | Step | Citation | Sentence | Answer | Waiting
