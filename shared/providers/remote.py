"""Embeddings over HTTP: batches, retries, pace and billing."""

import base64
import ipaddress
import itertools
import math
import random
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx2
import numpy as np
import numpy.typing as npt

from shared.errors import AskfolderError, PermanentError, SettingsError, TransientError
from shared.providers.embedder import Embedder, Vectors, filled, unit
from shared.providers.meter import BudgetError, Meter, Purpose, Tokens
from shared.providers.pace import Pace
from shared.text.tokens import estimate_tokens

# --- at a provider


RETRIES = 5

PATIENCE = 60.0  # seconds that one request may take, with its retries

QUESTION_PATIENCE = 10.0  # someone is waiting

SLOW_DOWN = frozenset({429, 503, 529})

DAY = 86_400.0  # seconds

UNSENT = (httpx2.ConnectError, httpx2.ConnectTimeout)

_sleep = time.sleep  # tests replace it


class NotSentError(TransientError):
    """There was no connection, so nothing was sent and nothing is paid for."""


class QuotaError(TransientError):
    """The account has no credit left: not worth a retry within the minute."""


class Provider:
    """What speaking to a provider has in common: the key, the address, and what its refusals mean."""

    label: str
    key_setting: str
    default_url: str

    def __init__(self, api_key: str | None, base_url: str | None, wish: str) -> None:
        """`base_url` includes /v1. `wish`: the setting that asks for this provider. SettingsError: something is missing."""
        self._url = (base_url or self.default_url).rstrip("/")
        if not self._url.startswith(("http://", "https://")):
            raise SettingsError(f"The address of {self.label}, {self._url!r}, must start with https:// or http://.")
        # A server of one's own, such as Ollama, needs no key.
        self._key = (api_key or "").strip() or ("none" if base_url else "")
        if not self._key:
            raise SettingsError(f"{wish} needs {self.key_setting}.")
        if not (self._key.isascii() and self._key.isprintable()) or " " in self._key:
            raise SettingsError(f"{self.key_setting} holds a character that no key has: it was not copied whole.")

    def _connections(self) -> httpx2.Client:
        """A client with the key, for plain HTTP."""
        return httpx2.Client(headers={"Authorization": f"Bearer {self._key}"}, trust_env=not is_loopback(self._url))

    def _general_refusal(self, response: httpx2.Response) -> AskfolderError | None:
        """What an answer other than 200 means, unless it is about what was sent."""
        status = response.status_code
        if status in (401, 403):
            # OpenAI quotes parts of the key in its own words, so they are not repeated here.
            return SettingsError(f"{self.label} refused the key (HTTP {status}). Check {self.key_setting}.")
        if status == 402 or (status == 429 and "insufficient_quota" in response.text):
            return QuotaError(
                f"The {self.label} account has no credit left (HTTP {status}); top it up, and the work goes on.",
                retry_after(response),
            )
        if status in (408, 409, 425, 429) or status >= 500:
            busy = "asks to slow down" if status == 429 else "is failing"
            return TransientError(
                f"{self.label} {busy} (HTTP {status}): {self._detail(response)}", retry_after(response)
            )
        return None

    def _detail(self, response: httpx2.Response) -> str:
        """The provider's own words, at most 300 characters of them, without the key."""
        detail: Any = response.text
        try:
            body = response.json()
            detail = body["error"]["message"] if "error" in body else body["detail"]
        except (ValueError, KeyError, TypeError):
            pass
        return " ".join(str(detail).replace(self._key, "…").split())[:300] or "no reason given."

    def _silence(self, error: Exception) -> TransientError:
        """There was no answer. Names the kind of error only: its text may quote headers."""
        host = urlsplit(self._url).netloc.rpartition("@")[2]
        unsent = isinstance(error, UNSENT) or isinstance(error.__cause__, UNSENT)  # the SDK wraps what it met
        return (NotSentError if unsent else TransientError)(
            f"{self.label} at {host} could not be reached, or fell silent ({type(error).__name__})."
        )


class RemoteEmbedder(Provider, Embedder):
    """What the providers' embedders have in common: retries (here and nowhere else), and the check of every answer."""

    known_dimensions: Mapping[str, int]
    batch_inputs = 128

    def __init__(
        self,
        api_key: str | None,
        model: str,
        dimensions: int | None,
        base_url: str | None,
        timeout: float,
        meter: Meter,
        redis_url: str,
    ) -> None:
        """`base_url` includes /v1. `timeout`: seconds without a byte. SettingsError: something is missing."""
        super().__init__(api_key, base_url, f"ASKFOLDER_EMBEDDER={self.name}")
        default = self.known_dimensions.get(model)
        if dimensions is None and default is None:
            raise SettingsError(f"How long are the vectors of {model}? Set ASKFOLDER_EMBEDDING_DIMENSIONS.")
        self.model = model
        self.dimensions = dimensions or default or 0
        self._asked_dimensions = None if dimensions == default else dimensions
        self._timeout = timeout
        self._meter = meter
        self._pace = Pace(redis_url, self.label, self._url, model)

    @abstractmethod
    def _post(self, texts: Sequence[str], kind: Literal["document", "query"], timeout: float) -> httpx2.Response:
        """Send one request and return the answer, whatever its status. TransientError: there was none."""

    def count(self, texts: Sequence[str]) -> list[int]:
        """Estimates; see `estimate_tokens`."""
        return [estimate_tokens(text) for text in texts]

    def embed(self, texts: Sequence[str]) -> Vectors:
        return self._request(texts, "document", PATIENCE)

    def embed_question(self, text: str) -> Vectors:
        vector: Vectors = self._request([text], "query", QUESTION_PATIENCE)[0]
        return vector

    def _request(self, texts: Sequence[str], kind: Literal["document", "query"], patience: float) -> Vectors:
        if not texts:
            return np.zeros((0, self.dimensions), np.float32)
        texts = filled(texts)
        deadline = time.monotonic() + patience
        for attempt in itertools.count():
            try:
                slowed = self._pace.wait(deadline - time.monotonic(), urgent=kind == "query")
                timeout = max(1.0, min(self._timeout, deadline - time.monotonic()))
                vectors = self._checked(self._paid(texts, kind, timeout), len(texts))
                if slowed:
                    self._pace.went_well()
                return vectors
            except (QuotaError, BudgetError):
                raise
            except TransientError as error:
                pause = max(error.retry_after or 0.0, 2**attempt * random.uniform(0.5, 1.0))
                if attempt == RETRIES or time.monotonic() + pause > deadline:
                    raise
            _sleep(pause)
        raise AssertionError("unreachable")

    def _paid(self, texts: Sequence[str], kind: Literal["document", "query"], timeout: float) -> httpx2.Response:
        """As `_post`, within the day's cap. BudgetError: beyond it. An answer that got lost counts as paid for, by the estimate."""
        purpose: Purpose = "documents" if kind == "document" else "questions"
        most = Tokens(sum(self.count(texts)))
        with self._meter.call(purpose, self.model, most, seconds=2 * PATIENCE) as call:
            try:
                response = self._post(texts, kind, timeout)
            except NotSentError:
                raise
            except TransientError:
                call.billed(most)
                raise
            if response.status_code == 200:
                call.billed(Tokens(total_tokens(response, most.input)))
        if response.status_code in SLOW_DOWN and not isinstance(self._general_refusal(response), QuotaError):
            self._pace.slow(retry_after(response))
        return response

    def _checked(self, response: httpx2.Response, count: int) -> Vectors:
        """The vectors of an answer, in the order of the texts, if all of it is sound."""
        if response.status_code != 200:
            raise self._refusal(response)
        try:
            data = response.json()["data"]
            rows = {item["index"]: _numbers(item["embedding"]) for item in data}
            vectors = np.stack([rows[index] for index in range(count)])
        except (ValueError, KeyError, TypeError, OverflowError):
            raise TransientError(f"{self.label} answered with something other than {count} vectors.") from None
        if len(data) != count:
            raise TransientError(f"{self.label} answered with {len(data)} vectors for {count} texts.")
        if vectors.shape[1] != self.dimensions:
            raise TransientError(
                f"{self.label} answered with vectors of {vectors.shape[1]} numbers instead of {self.dimensions}; "
                "check ASKFOLDER_EMBEDDING_MODEL and ASKFOLDER_EMBEDDING_DIMENSIONS."
            )
        if not np.isfinite(vectors).all() or not vectors.any(axis=1).all():
            raise TransientError(f"{self.label} answered with vectors that are zero or not finite.")
        return unit(vectors)

    def _refusal(self, response: httpx2.Response) -> AskfolderError:
        """What an answer other than 200 means. The one place that decides."""
        if (general := self._general_refusal(response)) is not None:
            return general
        status, detail = response.status_code, self._detail(response)
        if status == 404 or "dimension" in detail or (self.model in detail and "token" not in detail):
            return SettingsError(
                f"{self.label} refused the model {self.model} with {self.dimensions} dimensions (HTTP {status}): "
                f"{detail} Check ASKFOLDER_EMBEDDING_MODEL and ASKFOLDER_EMBEDDING_DIMENSIONS."
            )
        return PermanentError(f"{self.label} refused the texts (HTTP {status}): {detail}")


def is_loopback(url: str) -> bool:
    """Whether the address is on this machine, where a proxy has no business."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def retry_after(response: httpx2.Response) -> float | None:
    """Seconds that the answer asks to wait, a day at most, given in milliseconds, seconds or as a date (RFC 9110, 10.2.3)."""
    for header, divisor in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = response.headers.get(header, "")
        try:
            seconds = float(value) / divisor
        except ValueError:
            continue
        return min(max(seconds, 0.0), DAY) if math.isfinite(seconds) else None
    try:
        date = parsedate_to_datetime(response.headers["retry-after"])
        return min(max(date.timestamp() - time.time(), 0.0), DAY)
    except (KeyError, ValueError):
        return None


def total_tokens(response: httpx2.Response, otherwise: int) -> int:
    """The tokens that an answer says it took; where it does not, as on some servers of one's own, what was estimated."""
    try:
        return max(int(response.json()["usage"]["total_tokens"]), 0)
    except (ValueError, KeyError, TypeError, OverflowError):
        return otherwise


def _numbers(value: Any) -> npt.NDArray[np.float64]:
    """A vector as OpenAI's base64 of little-endian float32, or as a list of numbers. ValueError, TypeError: neither."""
    if isinstance(value, str):
        return np.frombuffer(base64.b64decode(value, validate=True), "<f4").astype(np.float64)
    vector = np.array(value, np.float64)
    if vector.ndim != 1:
        raise ValueError("not a vector")
    return vector
