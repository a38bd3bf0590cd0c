"""Models that read a question and a passage together: at Voyage, on this machine (ONNX Runtime), or Claude."""

import json
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol, TypeVar

import httpx2
import numpy as np
import numpy.typing as npt

from shared.errors import AskfolderError, PermanentError, SettingsError, TransientError
from shared.providers.claude import Claude, prompt
from shared.providers.local import find_model, max_length, open_model, read_tokenizer
from shared.providers.meter import UNMETERED, Call, Meter, Tokens
from shared.providers.pace import Pace
from shared.providers.remote import SLOW_DOWN, NotSentError, Provider, QuotaError, retry_after, total_tokens
from shared.providers.voyage import VoyageEmbedder
from shared.text.invisible import visible
from shared.text.tokens import encodable, estimate_tokens

Scores = npt.NDArray[np.float64]
T = TypeVar("T")
DEADLINE = "ASKFOLDER_RERANK_SECONDS"


class Reranker(Protocol):
    """One that is ready to work, within the seconds that it was made with."""

    def rerank(self, question: str, texts: Sequence[str]) -> Scores:
        """How well each text answers: shape (n,), finite, higher is better, comparable within one call only.

        `texts`: at most 1,000, none blank. TransientError: worth another try later. PermanentError: it would fail again.
        """


# --- at Voyage


class VoyageReranker(Provider):
    """Voyage AI, over plain HTTP. It cuts what is too long: a question beyond 8,000 tokens, a text beyond 32,000 with it."""

    label = VoyageEmbedder.label
    key_setting = VoyageEmbedder.key_setting
    default_url = VoyageEmbedder.default_url

    def __init__(
        self, api_key: str | None, model: str, base_url: str | None, seconds: float, meter: Meter = UNMETERED
    ) -> None:
        """`seconds`: that one answer may take, connecting included. SettingsError: something is missing."""
        super().__init__(api_key, base_url, "ASKFOLDER_RERANKER=voyage")
        self.model = model
        self._seconds = seconds
        self._meter = meter
        self._pace = Pace(meter.redis_url, self.label, self._url, model)
        self._client = self._connections()

    def rerank(self, question: str, texts: Sequence[str]) -> Scores:
        """`relevance_score`, between 0 and 1. Asked once: who waits for an answer is better off without a second try."""
        if not texts:
            return np.zeros(0)
        body = {
            "query": encodable(question),
            "documents": list(map(encodable, texts)),
            "model": self.model,
            "truncation": True,
        }
        # Voyage counts the question once for each text.
        most = Tokens(len(texts) * estimate_tokens(question) + sum(map(estimate_tokens, texts)))
        deadline = time.monotonic() + self._seconds
        slowed = self._pace.wait(self._seconds, urgent=True)
        with self._meter.call("reranking", self.model, most, self._seconds) as call:
            response = self._paid(body, most, call, deadline)
        if response.status_code != 200:
            problem = self._general_refusal(response) or self._refusal(response)
            if response.status_code in SLOW_DOWN and not isinstance(problem, QuotaError):
                self._pace.slow(retry_after(response))
            raise problem
        if slowed:
            self._pace.went_well()
        try:
            data = response.json()["data"]
            given = {item["index"]: float(item["relevance_score"]) for item in data}
            scores = np.array([given[index] for index in range(len(texts))])
        except (ValueError, KeyError, TypeError, OverflowError):
            raise TransientError(f"{self.label} answered with something other than {len(texts)} scores.") from None
        if len(data) != len(texts):
            raise TransientError(f"{self.label} answered with {len(data)} scores for {len(texts)} texts.")
        return _finite(scores, self.label)

    def close(self) -> None:
        self._client.close()
        self._pace.close()

    def _paid(self, body: dict[str, Any], most: Tokens, call: Call, deadline: float) -> httpx2.Response:
        """The answer in time, or TransientError. One that got lost counts as paid for, by the estimate."""
        try:
            response = _within(max(deadline - time.monotonic(), 0.0), lambda: self._post(body, deadline))
        except NotSentError:
            raise
        except (TimeoutError, TransientError) as error:
            call.billed(most)
            if isinstance(error, TransientError):
                raise
            raise TransientError(f"{self.label} did not answer within {self._seconds:g} s ({DEADLINE}).") from None
        if response.status_code == 200:
            call.billed(Tokens(total_tokens(response, most.input)))
        return response

    def _post(self, body: dict[str, Any], deadline: float) -> httpx2.Response:
        """The answer, whatever its status. TransientError: there was none. TimeoutError: it drips in beyond the deadline."""
        parts: list[bytes] = []
        timeout = self._seconds + 1  # of a single read, and only so that no thread stays for ever: nobody waits so long
        try:
            with self._client.stream("POST", f"{self._url}/rerank", json=body, timeout=timeout) as response:
                for part in response.iter_bytes():
                    if time.monotonic() > deadline:
                        raise TimeoutError
                    parts.append(part)
        except httpx2.HTTPError as error:
            raise self._silence(error) from None
        # The content is decoded by now, so the headers that say how it was encoded stay behind.
        headers = {name: value for name, value in response.headers.items() if name.startswith("retry-after")}
        return httpx2.Response(response.status_code, headers=headers, content=b"".join(parts))

    def _refusal(self, response: httpx2.Response) -> AskfolderError:
        status, detail = response.status_code, self._detail(response)
        if status == 404 or self.model in detail:
            return SettingsError(
                f"{self.label} refused the model {self.model} (HTTP {status}): {detail} Check ASKFOLDER_RERANKER_MODEL."
            )
        return PermanentError(f"{self.label} refused to rerank (HTTP {status}): {detail}")


def _within(seconds: float, call: Callable[[], T]) -> T:
    """What a call returns or raises; TimeoutError after the seconds, whatever it waits for, name resolution included."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, name="rerank", daemon=True).start()
    return future.result(seconds)


# --- on this machine


class LocalReranker:
    """A cross-encoder of sentence-transformers exported to ONNX, from a directory, on the CPU.

    The directory holds model.onnx or onnx/model.onnx, and tokenizer.json. The model gives one logit for a pair of texts.
    """

    ROWS, TOKENS = 32, 1024  # of a batch, at most; between two batches the time is looked at

    def __init__(self, directory: Path, seconds: float, threads: int = 1) -> None:
        """`threads`: that one run may use. SettingsError: it is no such model."""
        self._path = find_model(directory, "ASKFOLDER_RERANKER_MODEL", "reranker")
        self._seconds = seconds
        self._bare, self._pairs = read_tokenizer(directory), read_tokenizer(directory)
        length = max_length(directory, {})
        self._question_room = length // 2
        self._pairs.enable_truncation(length, strategy="only_second")  # the question stays, the passage is cut
        self._pad = next((at for name in ("[PAD]", "<pad>") if (at := self._bare.token_to_id(name)) is not None), 0)
        self._session = open_model(self._path, threads)
        self._asked = [node.name for node in self._session.get_inputs()]
        if not {"input_ids"} <= set(self._asked) <= {"input_ids", "attention_mask", "token_type_ids"}:
            raise SettingsError(f"{self._path} asks for {', '.join(self._asked)}: it is not a model of texts.")
        names = [node.name for node in self._session.get_outputs()]
        self._output = "logits" if "logits" in names else names[0]
        try:
            self._run(self._encoded("question", ["passage"]))
        except AskfolderError as error:
            raise SettingsError(f"{error} ASKFOLDER_RERANKER_MODEL must be a cross-encoder.") from None

    def rerank(self, question: str, texts: Sequence[str]) -> Scores:
        """Logits. It stops between two batches once the time is over."""
        deadline = time.monotonic() + self._seconds
        scores = np.zeros(len(texts))
        encoded = self._encoded(question, texts)
        order = sorted(range(len(texts)), key=lambda index: len(encoded[index].ids))
        while order:
            if time.monotonic() > deadline:
                raise TransientError(
                    f"The local reranker {self._path.parent.name} had {len(order)} of {len(texts)} passages left after "
                    f"{self._seconds:g} s ({DEADLINE}). Give it more time, or take a smaller model."
                )
            longest = len(encoded[order[min(self.ROWS, len(order)) - 1]].ids)
            rows = max(1, min(self.ROWS, self.TOKENS // longest))
            chosen, order = order[:rows], order[rows:]
            scores[chosen] = self._run([encoded[index] for index in chosen])
        return scores

    def _encoded(self, question: str, texts: Sequence[str]) -> list[Any]:
        """Question and text as one input each; a question takes half of the room at most."""
        question = encodable(question)
        alone = self._bare.encode(question, add_special_tokens=False)
        if len(alone.ids) > self._question_room:
            question = question[: alone.offsets[self._question_room - 1][1]]
        return list(self._pairs.encode_batch([(question, encodable(text)) for text in texts]))

    def _run(self, batch: Sequence[Any]) -> Scores:
        shape = (len(batch), max(len(row.ids) for row in batch))
        given = {"input_ids": np.full(shape, self._pad, np.int64)}
        given |= {name: np.zeros(shape, np.int64) for name in ("attention_mask", "token_type_ids")}
        for at, row in enumerate(batch):
            given["input_ids"][at, : len(row.ids)] = row.ids
            given["attention_mask"][at, : len(row.ids)] = 1
            given["token_type_ids"][at, : len(row.ids)] = row.type_ids
        try:
            output = self._session.run([self._output], {name: given[name] for name in self._asked})[0]
        except Exception as error:  # ONNX Runtime's own exceptions have no common base but this
            raise PermanentError(f"The local reranker {self._path} failed: {error}.") from error
        if output.size != len(batch):
            raise PermanentError(
                f"The local reranker {self._path} gives {output.shape} numbers, not one for each pair."
            )
        return _finite(np.asarray(output, np.float64).reshape(-1), f"The local reranker {self._path}")


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
        raise TransientError("Claude answered without an order of the passages.")
    numbers = [int(digits) - 1 for digits in re.findall(r"\d+", max(lists, key=len)) if len(digits) < 5]
    return list(dict.fromkeys([*(n for n in numbers if 0 <= n < count), *range(count)]))


def _finite(scores: Scores, who: str) -> Scores:
    if not np.isfinite(scores).all():
        raise TransientError(f"{who} answered with scores that are not finite.")
    return scores
