"""The interface of an embedder, and batches. `Embedder.embed` makes one request; `embed_all` makes one per batch."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from shared.errors import PermanentError
from shared.text.tokens import encodable, estimate_tokens

# The tokenizer's thread pool does not survive Celery's fork, and two pools would compete for the cores.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

Vectors = npt.NDArray[np.float32]
Kind = Literal["document", "query"]  # models may embed a question differently from a passage


class Embedder(ABC):
    """Turns texts into vectors. A new embedder implements `embed_batch`, and `count` if it has a tokenizer.

    All vectors are float32 and L2-normalised, so that an inner product is a cosine.
    """

    name: str  # "local" | "openai" | "voyage"
    model: str  # two embedders with the same model and dimensions make comparable vectors
    dimensions: int
    max_tokens: int  # of one text, as `count` counts
    batch_inputs: int  # texts in one request
    batch_tokens: int  # tokens in one request, as `count` counts

    @abstractmethod
    def embed_batch(self, texts: Sequence[str], kind: Kind) -> Vectors:
        """Embed at least one text in one request; shape (n, dimensions). No text is blank.

        TransientError: a later retry may succeed. PermanentError: the request was refused and always will be.
        """

    def count(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of each text, without special tokens. By default an estimate from above."""
        return [estimate_tokens(text) for text in texts]

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Embed passages in one request. Errors as in `embed_batch`; ValueError: a text is blank."""
        return self.embed_batch(filled(texts), "document") if texts else np.zeros((0, self.dimensions), np.float32)

    def embed_question(self, text: str) -> Vectors:
        """Embed a question; shape (dimensions,). Errors as in `embed`."""
        vector: Vectors = self.embed_batch(filled([text]), "query")[0]
        return vector

    def close(self) -> None:  # noqa: B027
        """Release connections and memory."""


def batches(embedder: Embedder, token_counts: Sequence[int]) -> Iterator[list[int]]:
    """Group texts into requests within the embedder's limits, by length to save padding. Yields indexes."""
    batch: list[int] = []
    tokens = 0
    for index in sorted(range(len(token_counts)), key=token_counts.__getitem__):
        if batch and (len(batch) == embedder.batch_inputs or tokens + token_counts[index] > embedder.batch_tokens):
            yield batch
            batch, tokens = [], 0
        batch.append(index)
        tokens += token_counts[index]
    if batch:
        yield batch


def embed_all(embedder: Embedder, texts: Sequence[str], on_batch: Callable[[list[int], Vectors], None]) -> None:
    """Embed all texts, calling `on_batch(indexes, vectors)` after each batch.

    Requests run one at a time, so that a process that dies loses at most one paid batch. Documents are embedded in
    parallel by several processes.
    """
    for batch in batches(embedder, embedder.count(texts)):
        on_batch(batch, embedder.embed([texts[index] for index in batch]))


def unit(vectors: npt.NDArray[Any]) -> Vectors:
    """Scale rows to length 1, in float64. PermanentError: a row is zero or not finite."""
    exact = vectors.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise PermanentError("The embedding model made a vector that is zero or not finite.")
    return np.asarray(exact / lengths, np.float32)


def filled(texts: Sequence[str]) -> list[str]:
    """Make texts encodable. ValueError: a text is blank, which providers refuse."""
    if not all(text.strip() for text in texts):
        raise ValueError("A blank text cannot be embedded.")
    return [encodable(text) for text in texts]
