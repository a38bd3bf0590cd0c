"""Embeddings over HTTP: the endpoint of a provider, retries, pace and billing."""

import base64
import contextlib
import ipaddress
import math
import random
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx2
import numpy as np
import numpy.typing as npt
from pydantic import SecretStr

from shared.errors import AskfolderError, PermanentError, SettingsError, TransientError
from shared.providers.embedder import Embedder, Kind, Vectors, unit
from shared.providers.meter import UNMETERED, BudgetError, Meter, Purpose, Tokens
from shared.providers.pace import Pace

RETRIES = 5
PATIENCE = 60.0  # seconds for one request, retries included
QUESTION_PATIENCE = 10.0  # the same for a question: the user is waiting
SLOW_DOWN = frozenset({429, 503, 529})
DAY = 86_400.0  # seconds
UNSENT = (httpx2.ConnectError, httpx2.ConnectTimeout)


class NotSentError(TransientError):
    """No connection was made, so nothing was sent and nothing is billed."""


class QuotaError(TransientError):
    """The account has no credit left; retrying within a minute does not help."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A provider's API: its name for messages, the key, the address with /v1, and the setting that holds the key."""

    label: str
    key: str = field(repr=False)
    url: str
    key_setting: str

    @classmethod
    def of(cls, label: str, key_setting: str, key: SecretStr | None, own_url: str, default_url: str) -> "Endpoint":
        """Check a provider's settings. `own_url`: another server's address, or "". SettingsError: one is wrong."""
        url = (own_url or default_url).rstrip("/")
        if not url.startswith(("http://", "https://")):
            raise SettingsError(f"The address of {label}, {url!r}, must start with https:// or http://.")
        # A self-hosted server, such as Ollama, needs no key.
        secret = (key.get_secret_value() if key else "").strip() or ("none" if own_url else "")
        if not secret:
            raise SettingsError(f"{label} needs {key_setting}; set it in .env or the environment.")
        if not (secret.isascii() and secret.isprintable()) or " " in secret:
            raise SettingsError(f"{key_setting} contains an invalid character or a space; copy the key again.")
        return cls(label, secret, url, key_setting)

    def client(self) -> httpx2.Client:
        """Open an HTTP client that sends the key."""
        return httpx2.Client(headers={"Authorization": f"Bearer {self.key}"}, trust_env=not is_loopback(self.url))

    def refusal(self, response: httpx2.Response) -> AskfolderError | None:
        """Classify a status other than 200. None if the cause is in the request itself."""
        status = response.status_code
        if status in (401, 403):
            # OpenAI's message quotes parts of the key, so it is not repeated here.
            return SettingsError(f"{self.label} refused the key (HTTP {status}). Check {self.key_setting}.")
        if status == 402 or (status == 429 and "insufficient_quota" in response.text):
            return QuotaError(
                f"The {self.label} account has no credit left (HTTP {status}); add credit, and the work continues.",
                retry_after(response),
            )
        if status in (408, 409, 425, 429) or status >= 500:
            problem = "asks to slow down" if status == 429 else "is failing"
            return TransientError(
                f"{self.label} {problem} (HTTP {status}): {self.detail(response)}", retry_after(response)
            )
        return None

    def detail(self, response: httpx2.Response) -> str:
        """The provider's error message, at most 300 characters, without the key."""
        detail: Any = response.text
        with contextlib.suppress(ValueError, KeyError, TypeError):
            body = response.json()
            detail = body["error"]["message"] if "error" in body else body["detail"]
        return " ".join(str(detail).replace(self.key, "…").split())[:300] or "no reason given."

    def no_answer(self, error: Exception) -> TransientError:
        """Translate a connection error. Only its type is named: its text may quote headers."""
        host = urlsplit(self.url).netloc.rpartition("@")[2]
        unsent = isinstance(error, UNSENT) or isinstance(error.__cause__, UNSENT)  # the SDK wraps the original
        return (NotSentError if unsent else TransientError)(
            f"{self.label} at {host} could not be reached, or did not answer ({type(error).__name__})."
        )


class RemoteEmbedder(Embedder):
    """Base of the providers' embedders: retries (here and nowhere else), pace, billing, and a check of every answer."""

    default_model: str
    known_dimensions: Mapping[str, int]
    batch_inputs = 128

    def __init__(
        self,
        endpoint: Endpoint,
        model: str = "",
        dimensions: int | None = None,
        meter: Meter = UNMETERED,
        timeout: float = 30.0,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """`timeout`: seconds without a byte. SettingsError: the dimensions of the model are unknown."""
        self.model = model or self.default_model
        default = self.known_dimensions.get(self.model)
        if dimensions is None and default is None:
            raise SettingsError(f"The dimensions of {self.model} are unknown: set ASKFOLDER_EMBEDDING_DIMENSIONS.")
        self.dimensions = dimensions or default or 0
        self._shortened = None if dimensions == default else dimensions
        self._endpoint, self._meter, self._timeout, self._sleep = endpoint, meter, timeout, sleep
        self._pace = Pace(meter.redis_url, endpoint.label, endpoint.url, self.model)
        self._client = self._connect()

    @abstractmethod
    def _post(self, texts: Sequence[str], kind: Kind, timeout: float) -> httpx2.Response:
        """Send one request. Return the answer, whatever its status. TransientError: there was no answer."""

    def _connect(self) -> Any:
        """Open the client that `_post` uses."""
        return self._endpoint.client()

    def close(self) -> None:
        self._client.close()
        self._pace.close()

    def embed_batch(self, texts: Sequence[str], kind: Kind) -> Vectors:
        deadline = time.monotonic() + (PATIENCE if kind == "document" else QUESTION_PATIENCE)
        attempt = 0
        while True:
            try:
                slowed = self._pace.wait(deadline - time.monotonic(), urgent=kind == "query")
                timeout = max(1.0, min(self._timeout, deadline - time.monotonic()))
                vectors = self._checked(self._billed(texts, kind, timeout), len(texts))
                if slowed:
                    self._pace.went_well()
                return vectors
            except (QuotaError, BudgetError):
                raise
            except TransientError as error:
                pause = max(error.retry_after or 0.0, 2**attempt * random.uniform(0.5, 1.0))
                if attempt == RETRIES or time.monotonic() + pause > deadline:
                    raise
            self._sleep(pause)
            attempt += 1

    def _billed(self, texts: Sequence[str], kind: Kind, timeout: float) -> httpx2.Response:
        """Send one request within the daily cap. A lost answer is billed by the estimate. BudgetError: over the cap."""
        estimate = Tokens(sum(self.count(texts)))
        purpose: Purpose = "documents" if kind == "document" else "questions"
        with self._meter.call(purpose, self.model, estimate, seconds=2 * PATIENCE) as call:
            try:
                response = self._post(texts, kind, timeout)
            except NotSentError:
                raise
            except TransientError:
                call.billed(estimate)
                raise
            if response.status_code == 200:
                call.billed(Tokens(total_tokens(response, estimate.input)))
        if response.status_code in SLOW_DOWN and not isinstance(self._endpoint.refusal(response), QuotaError):
            self._pace.slow(retry_after(response))
        return response

    def _checked(self, response: httpx2.Response, count: int) -> Vectors:
        """Read the vectors of an answer, in the order of the texts. TransientError: the answer is malformed."""
        if response.status_code != 200:
            raise self._endpoint.refusal(response) or self._refusal(response)
        label = self._endpoint.label
        try:
            data = response.json()["data"]
            rows = {item["index"]: _numbers(item["embedding"]) for item in data}
            vectors = np.stack([rows[index] for index in range(count)])
        except (ValueError, KeyError, TypeError, OverflowError):
            raise TransientError(f"{label} answered with something other than {count} vectors.") from None
        if len(data) != count:
            raise TransientError(f"{label} answered with {len(data)} vectors for {count} texts.")
        if vectors.shape[1] != self.dimensions:
            raise TransientError(
                f"{label} answered with vectors of {vectors.shape[1]} numbers instead of {self.dimensions}; "
                "check ASKFOLDER_EMBEDDING_MODEL and ASKFOLDER_EMBEDDING_DIMENSIONS."
            )
        if not np.isfinite(vectors).all() or not vectors.any(axis=1).all():
            raise TransientError(f"{label} answered with vectors that are zero or not finite.")
        return unit(vectors)

    def _refusal(self, response: httpx2.Response) -> AskfolderError:
        """Classify a refusal of the request itself: a wrong setting, or texts that cannot be embedded."""
        label, status, detail = self._endpoint.label, response.status_code, self._endpoint.detail(response)
        if status == 404 or "dimension" in detail or (self.model in detail and "token" not in detail):
            return SettingsError(
                f"{label} refused the model {self.model} with {self.dimensions} dimensions (HTTP {status}): "
                f"{detail} Check ASKFOLDER_EMBEDDING_MODEL and ASKFOLDER_EMBEDDING_DIMENSIONS."
            )
        return PermanentError(f"{label} refused the texts (HTTP {status}): {detail}")


def is_loopback(url: str) -> bool:
    """True if the address is on this machine; proxies are not used for it."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def retry_after(response: httpx2.Response) -> float | None:
    """Seconds to wait, at most a day, from milliseconds, seconds or a date (RFC 9110, section 10.2.3)."""
    for header, divisor in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        with contextlib.suppress(KeyError, ValueError):
            seconds = float(response.headers[header]) / divisor
            return min(max(seconds, 0.0), DAY) if math.isfinite(seconds) else None
    with contextlib.suppress(KeyError, ValueError):
        date = parsedate_to_datetime(response.headers["retry-after"])
        return min(max(date.timestamp() - time.time(), 0.0), DAY)
    return None


def total_tokens(response: httpx2.Response, estimate: int) -> int:
    """The tokens used according to the answer; the estimate if a server does not report them."""
    try:
        return max(int(response.json()["usage"]["total_tokens"]), 0)
    except (ValueError, KeyError, TypeError, OverflowError):
        return estimate


def _numbers(value: Any) -> npt.NDArray[np.float64]:
    """Read a vector: base64 of little-endian float32, or a list of numbers. ValueError, TypeError: neither."""
    if isinstance(value, str):
        return np.frombuffer(base64.b64decode(value, validate=True), "<f4").astype(np.float64)
    vector = np.array(value, np.float64)
    if vector.ndim != 1:
        raise ValueError("not a vector")
    return vector
