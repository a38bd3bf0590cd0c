"""Texts become vectors: on this machine (ONNX Runtime), or at OpenAI or Voyage.

An `Embedder` makes one request; `embed_all` runs many, in batches that are handed over as they arrive.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.errors import PermanentError
from shared.text.tokens import encodable

# Its thread pool does not survive the fork that Celery makes, and two processes with pools would fight over the cores.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

Vectors = npt.NDArray[np.float32]


class Embedder(ABC):
    """Makes vectors. All are float32 and L2-normalised, so that an inner product is a cosine."""

    name: str  # "local" | "openai" | "voyage"
    model: str  # names the vectors: two embedders with the same model and dimensions make comparable ones
    dimensions: int
    max_tokens: int  # of one text, as `count` counts
    batch_inputs: int  # texts in one request
    batch_tokens: int  # tokens in one request, as `count` counts

    @abstractmethod
    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, without the special tokens that the model adds."""

    @abstractmethod
    def embed(self, texts: Sequence[str]) -> Vectors:
        """Embed passages in one request; shape (n, dimensions), in the order of `texts`, none of which may be blank.

        TransientError: worth another try later. PermanentError: the request was refused and would be again.
        """

    @abstractmethod
    def embed_question(self, text: str) -> Vectors:
        """Embed a question; shape (dimensions,). Errors as `embed`."""

    @abstractmethod
    def close(self) -> None:
        """Let go of connections and memory."""


def batches(embedder: Embedder, token_counts: Sequence[int]) -> Iterator[list[int]]:
    """The indexes of each request's texts, within the embedder's limits; like lengths together, as padding costs."""
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
    """Embed all texts and hand over each batch as it arrives: `on_batch(indexes, vectors)`.

    One request at a time: what a process that dies in the middle has paid for in vain is one batch at most. Many documents
    are embedded side by side by as many processes.
    """
    for batch in batches(embedder, embedder.count(texts)):
        on_batch(batch, embedder.embed([texts[index] for index in batch]))


def unit(vectors: npt.NDArray[Any]) -> Vectors:
    """Rows scaled to length 1, computed in float64. PermanentError: a row is zero or not finite."""
    exact = vectors.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise PermanentError("The embedding model made a vector that is zero or not finite.")
    return np.asarray(exact / lengths, np.float32)


def filled(texts: Sequence[str]) -> list[str]:
    """The texts as they can be sent. ValueError: one is blank, which providers refuse, and which no chunk may be."""
    if not all(text.strip() for text in texts):
        raise ValueError("A blank text cannot be embedded.")
    return [encodable(text) for text in texts]
