"""Values that travel between the stages."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
    """A document's extracted text and its structure.

    `text` never has NUL or lone surrogates. `kind`: how its blocks are found ("markdown" also for everything that was
    converted to Markdown: headings `#`, fences, pipe tables). `pages`: (character offset, number) of each page or
    slide, ascending; empty if the format has none. `title`: from inside the document, never from its name.
    `metadata`: the document's own properties, JSON of at most 16 kB, names in lower case (author, date, created,
    modified, language, keywords, subject, description, and others). `dated`: the document's own date.
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

    `context`: a model's sentences that situate the chunk in its document, searched and never quoted. "": the model gave
    none; None: no model was asked.
    """

    ordinal: int
    content: str
    heading_path: tuple[str, ...]
    page: int | None
    char_start: int
    char_end: int
    context: str | None = None


@dataclass(frozen=True, slots=True)
class EmbeddingModel:
    """The choice of an embedder. `path`: the directory of a user's local model, or "" for the built-in model."""

    embedder: str  # "local" | "openai" | "voyage"
    model: str  # "": the provider's default
    path: str = ""
    dimensions: int | None = None  # None: the model's default


@dataclass(frozen=True, slots=True)
class Passage:
    """A chunk that was found for a question. `score`: higher is better, comparable within one result only.

    `rerank_score`: the same, from the reranker. Passages that have one come first, ordered by it.
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
class Turn:
    """An earlier question of the conversation, and its answer as it was shown."""

    question: str
    answer: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """A search that the model asked for before it answered. `passages`: those that no earlier search found."""

    number: int
    query: str
    passages: tuple[Passage, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Waiting:
    """The model is silent. This event comes about every half second, so that a disconnected client is noticed."""


@dataclass(frozen=True, slots=True)
class Citation:
    """A quote that supports a sentence of the answer; `document_text[char_start:char_end] == quote` was checked."""

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
    """A sentence of an answer as it is shown: its text with citation marks and the whitespace that ends it.

    `status`: supported | partly | unsupported. `citations`: the numbers of its citations.
    """

    text: str
    status: str
    citations: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """A checked answer. `text`: its sentences joined and stripped, with the marks [1], [2] … of its citations.

    `verdict`: grounded (a model wrote it and every sentence is supported), quoted (every sentence is a quote), partial,
    no_answer (then there are no sentences). `dropped`: citations whose quote is not in the document. `removed`:
    sentences left out because nothing supports them.
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


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Passages for a question, best first. `timings`: milliseconds by stage. `steps`: their passages come last."""

    question: str  # completed, if it was a follow-up
    passages: tuple[Passage, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()

    def extended(self, step: Step) -> "SearchResult":
        """Add the passages and warnings of a step."""
        warnings = tuple(dict.fromkeys(self.warnings + step.warnings))
        return replace(self, passages=self.passages + step.passages, warnings=warnings, steps=(*self.steps, step))


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of an answer. `found`: with the passages of all steps, and the timings of all stages."""

    answer: Answer
    found: SearchResult


Event = SearchResult | Step | Citation | Sentence | Waiting | Finished
