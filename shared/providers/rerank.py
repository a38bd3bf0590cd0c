"""Voyage's reranking API."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import httpx2
import numpy as np
import numpy.typing as npt

from shared.errors import AskfolderError, PermanentError, SettingsError, TransientError
from shared.providers.meter import UNMETERED, Call, Meter, Tokens
from shared.providers.pace import Pace
from shared.providers.remote import SLOW_DOWN, Endpoint, NotSentError, QuotaError, retry_after, total_tokens
from shared.text.tokens import encodable, estimate_tokens

Scores = npt.NDArray[np.float64]
T = TypeVar("T")


class VoyageReranker:
    """Voyage AI over plain HTTP. Voyage truncates questions beyond 8,000 tokens, and texts beyond 32,000 with them."""

    def __init__(self, endpoint: Endpoint, model: str, seconds: float, meter: Meter = UNMETERED) -> None:
        """`seconds`: the time limit of one answer, connecting included."""
        self.label, self.model = endpoint.label, model
        self._endpoint, self._seconds, self._meter = endpoint, seconds, meter
        self._pace = Pace(meter.redis_url, endpoint.label, endpoint.url, model)
        self._client = endpoint.client()

    def rerank(self, question: str, texts: Sequence[str]) -> Scores:
        """`relevance_score` of each text, between 0 and 1. One request: a retry would take too long."""
        if not texts:
            return np.zeros(0)
        documents = list(map(encodable, texts))
        body = {"query": encodable(question), "documents": documents, "model": self.model, "truncation": True}
        # Voyage counts the question once for each text.
        most = Tokens(len(texts) * estimate_tokens(question) + sum(map(estimate_tokens, texts)))
        deadline = time.monotonic() + self._seconds
        slowed = self._pace.wait(self._seconds, urgent=True)
        with self._meter.call("reranking", self.model, most, self._seconds) as call:
            response = self._paid(body, most, call, deadline)
        if response.status_code != 200:
            problem = self._endpoint.refusal(response) or self._refusal(response)
            if response.status_code in SLOW_DOWN and not isinstance(problem, QuotaError):
                self._pace.slow(retry_after(response))
            raise problem
        if slowed:
            self._pace.went_well()
        try:
            data = response.json()["data"]
            score_of = {item["index"]: float(item["relevance_score"]) for item in data}
            scores = np.array([score_of[index] for index in range(len(texts))])
        except (ValueError, KeyError, TypeError, OverflowError):
            raise TransientError(f"{self.label} answered with something other than {len(texts)} scores.") from None
        if len(data) != len(texts):
            raise TransientError(f"{self.label} answered with {len(data)} scores for {len(texts)} texts.")
        return finite(scores, self.label)

    def close(self) -> None:
        self._client.close()
        self._pace.close()

    def _paid(self, body: dict[str, Any], most: Tokens, call: Call, deadline: float) -> httpx2.Response:
        """Send the request and bill it. An answer that is lost or late (TransientError) is billed by the estimate."""
        try:
            response = _within(max(deadline - time.monotonic(), 0.0), lambda: self._post(body, deadline))
        except NotSentError:
            raise
        except TransientError:
            call.billed(most)
            raise
        except TimeoutError:
            call.billed(most)
            raise TransientError(
                f"{self.label} did not answer within {self._seconds:g} s (ASKFOLDER_RERANK_SECONDS)."
            ) from None
        if response.status_code == 200:
            call.billed(Tokens(total_tokens(response, most.input)))
        return response

    def _post(self, body: dict[str, Any], deadline: float) -> httpx2.Response:
        """The answer, whatever its status. TransientError if there is none, TimeoutError if it arrives too slowly."""
        parts: list[bytes] = []
        timeout = self._seconds + 1  # for a single read; it only ends the thread, since `_within` gave up before
        try:
            with self._client.stream("POST", f"{self._endpoint.url}/rerank", json=body, timeout=timeout) as response:
                for part in response.iter_bytes():
                    if time.monotonic() > deadline:
                        raise TimeoutError
                    parts.append(part)
        except httpx2.HTTPError as error:
            raise self._endpoint.no_answer(error) from None
        # The content is decoded already, so headers about its encoding are left out.
        headers = {name: value for name, value in response.headers.items() if name.startswith("retry-after")}
        return httpx2.Response(response.status_code, headers=headers, content=b"".join(parts))

    def _refusal(self, response: httpx2.Response) -> AskfolderError:
        status, detail = response.status_code, self._endpoint.detail(response)
        if status == 404 or self.model in detail:
            return SettingsError(
                f"{self.label} refused the model {self.model} (HTTP {status}): {detail} Check ASKFOLDER_RERANKER_MODEL."
            )
        return PermanentError(f"{self.label} refused to rerank (HTTP {status}): {detail}")


def finite(scores: Scores, reranker: str) -> Scores:
    """The scores, if all are finite; else TransientError."""
    if not np.isfinite(scores).all():
        raise TransientError(f"{reranker} answered with scores that are not finite.")
    return scores


def _within(seconds: float, call: Callable[[], T]) -> T:
    """Run a call in a thread. TimeoutError after the seconds, whatever it waits for, name resolution included."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, name="rerank", daemon=True).start()
    return future.result(seconds)
