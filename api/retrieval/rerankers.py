"""Models that read a question and a passage together: on this machine (ONNX Runtime), or Claude.

Voyage's stands in shared/providers/rerank.py.
"""

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from shared.errors import AskfolderError, PermanentError, SettingsError, TransientError
from shared.providers.claude import Claude, prompt
from shared.providers.local import find_model, max_length, open_model, read_tokenizer
from shared.providers.rerank import Scores, finite
from shared.text.invisible import visible
from shared.text.tokens import encodable

DEADLINE = "ASKFOLDER_RERANK_SECONDS"


class Reranker(Protocol):
    """A reranker that is ready to work, with a time limit of its own."""

    def rerank(self, question: str, texts: Sequence[str]) -> Scores:
        """Score how well each text answers: shape (n,), finite, higher is better, comparable within one call only.

        `texts`: at most 1,000, none blank. TransientError: try again later. PermanentError: it would fail again.
        """


class LocalReranker:
    """A cross-encoder of sentence-transformers exported to ONNX, from a directory, on the CPU.

    The directory has model.onnx or onnx/model.onnx, and tokenizer.json. The model gives one logit for a pair of texts.
    """

    ROWS, TOKENS = 32, 1024  # of a batch, at most; the deadline is checked between batches

    def __init__(self, directory: Path, seconds: float, threads: int = 1) -> None:
        """`threads`: for one run of the model. SettingsError: the directory holds no cross-encoder."""
        self._path = find_model(directory, "ASKFOLDER_RERANKER_MODEL", "reranker")
        self._seconds = seconds
        self._bare, self._pairs = read_tokenizer(directory), read_tokenizer(directory)
        length = max_length(directory, {})
        self._question_tokens = length // 2  # at most
        self._pairs.enable_truncation(length, strategy="only_second")  # the question stays, the passage is cut
        self._pad = next((at for name in ("[PAD]", "<pad>") if (at := self._bare.token_to_id(name)) is not None), 0)
        self._session = open_model(self._path, threads)
        self._inputs = [node.name for node in self._session.get_inputs()]
        if not {"input_ids"} <= set(self._inputs) <= {"input_ids", "attention_mask", "token_type_ids"}:
            raise SettingsError(f"{self._path} needs {', '.join(self._inputs)}: it is not a text model.")
        names = [node.name for node in self._session.get_outputs()]
        self._output = "logits" if "logits" in names else names[0]
        try:
            self.score(self._encode("question", ["passage"]))
        except AskfolderError as error:
            raise SettingsError(f"{error} ASKFOLDER_RERANKER_MODEL must be a cross-encoder.") from None

    def rerank(self, question: str, texts: Sequence[str]) -> Scores:
        """Logits. TransientError if the time is over before the last batch."""
        deadline = time.monotonic() + self._seconds
        scores = np.zeros(len(texts))
        encoded = self._encode(question, texts)
        order = sorted(range(len(texts)), key=lambda index: len(encoded[index].ids))
        while order:
            if time.monotonic() > deadline:
                raise TransientError(
                    f"The local reranker {self._path.parent.name} had {len(order)} of {len(texts)} passages left after "
                    f"{self._seconds:g} s ({DEADLINE}). Raise the limit, or use a smaller model."
                )
            longest = len(encoded[order[min(self.ROWS, len(order)) - 1]].ids)
            rows = max(1, min(self.ROWS, self.TOKENS // longest))
            chosen, order = order[:rows], order[rows:]
            scores[chosen] = self.score([encoded[index] for index in chosen])
        return scores

    def _encode(self, question: str, texts: Sequence[str]) -> list[Any]:
        """Encode the question with each text; the question is cut to half of the model's length."""
        question = encodable(question)
        alone = self._bare.encode(question, add_special_tokens=False)
        if len(alone.ids) > self._question_tokens:
            question = question[: alone.offsets[self._question_tokens - 1][1]]
        return list(self._pairs.encode_batch([(question, encodable(text)) for text in texts]))

    def score(self, batch: Sequence[Any]) -> Scores:
        """Run the model on encoded pairs."""
        shape = (len(batch), max(len(row.ids) for row in batch))
        inputs = {"input_ids": np.full(shape, self._pad, np.int64)}
        inputs |= {name: np.zeros(shape, np.int64) for name in ("attention_mask", "token_type_ids")}
        for at, row in enumerate(batch):
            inputs["input_ids"][at, : len(row.ids)] = row.ids
            inputs["attention_mask"][at, : len(row.ids)] = 1
            inputs["token_type_ids"][at, : len(row.ids)] = row.type_ids
        try:
            output = self._session.run([self._output], {name: inputs[name] for name in self._inputs})[0]
        except Exception as error:  # ONNX Runtime's own exceptions have no common base but this
            raise PermanentError(f"The local reranker {self._path} failed: {error}.") from error
        if output.size != len(batch):
            raise PermanentError(
                f"The local reranker {self._path} returned numbers of shape {output.shape}, not one for each pair."
            )
        return finite(np.asarray(output, np.float64).reshape(-1), f"The local reranker {self._path}")


# --- Claude


class ClaudeReranker:
    """A small model of Anthropic's, or of a server with the same interface, that puts numbered passages in order."""

    MAX_TOKENS = 2048  # of the order and the thoughts before it
    SYSTEM = prompt(__file__, "reranking.md")

    def __init__(self, claude: Claude, model: str, seconds: float) -> None:
        """`seconds`: the time limit of one answer, connecting included."""
        self._claude, self._model, self._seconds = claude, model, seconds

    def rerank(self, question: str, texts: Sequence[str]) -> Scores:
        """Score by place alone: 1 for the first, then 1/n less each. Passages that the model left out come last."""
        if not texts:
            return np.zeros(0)
        # As JSON, a passage cannot end before its end: quotes in it are escaped.
        lines = [
            json.dumps({"number": n, "passage": visible(text)}, ensure_ascii=False) for n, text in enumerate(texts, 1)
        ]
        parts = (encodable("\n".join(lines)), f"Question: {encodable(question)}")
        content = [{"type": "text", "text": text} for text in parts]
        reply = self._claude.complete("reranking", self._model, self.SYSTEM, content, self.MAX_TOKENS, self._seconds)
        order = read_order(reply.text, len(texts))
        scores = np.zeros(len(texts))
        scores[order] = 1 - np.arange(len(texts)) / len(texts)
        return scores


def read_order(text: str, count: int) -> list[int]:
    """Read the indexes of all passages in an answer's order. Those that it leaves out come last, in their old order.

    Of several lists the longest counts. Numbers that repeat, or belong to no passage, are ignored.
    """
    lists = re.findall(r'\[[\s\d,"]*\]', text)
    if not lists:
        raise TransientError("Claude's answer contains no order of the passages.")
    numbers = [int(digits) - 1 for digits in re.findall(r"\d+", max(lists, key=len)) if len(digits) < 5]
    return list(dict.fromkeys([*(n for n in numbers if 0 <= n < count), *range(count)]))
