"""Texts become vectors: on this machine (ONNX Runtime), or at OpenAI or Voyage.

An `Embedder` makes one request; `embed_all` runs many, in batches that are handed over as they arrive.
"""

import base64
import hashlib
import ipaddress
import itertools
import json
import math
import os
import random
import string
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx2
import numpy as np
import numpy.typing as npt

from shared.errors import AskfolderError, PermanentError, SettingsError, TransientError
from shared.local_model import CONFIG, prepare
from shared.pace import Pace
from shared.usage import BudgetError, Meter, Purpose, Tokens

# Its thread pool does not survive the fork that Celery makes, and two processes with pools would fight over the cores.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
from tokenizers import Tokenizer

Vectors = npt.NDArray[np.float32]
UNMETERED = Meter()


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


def open_embedder(
    name: str,
    *,
    model: str | None = None,
    dimensions: int | None = None,
    openai_api_key: str | None = None,
    openai_base_url: str | None = None,
    voyage_api_key: str | None = None,
    voyage_base_url: str | None = None,
    local_directory: Path,
    threads: int = 1,
    meter: Meter = UNMETERED,
    redis_url: str = "",
) -> Embedder:
    """The embedder that the settings ask for. `model`: None for the default; for "local" a directory.

    `local_directory`: where our own local model is kept, and built when it is not there. `redis_url`: where all processes
    learn that a provider asks to slow down; empty: each for itself. SettingsError: it cannot work.
    """
    if name == "local":
        local = LocalEmbedder(Path(model).expanduser() if model else prepare(local_directory), threads)
        if dimensions not in (None, local.dimensions):
            raise SettingsError(
                f"ASKFOLDER_EMBEDDING_DIMENSIONS is {dimensions}, but the local model has {local.dimensions}: unset it."
            )
        return local
    if name == "openai":
        return OpenAIEmbedder(
            openai_api_key, model or "text-embedding-3-small", dimensions, openai_base_url, meter=meter, redis_url=redis_url
        )  # fmt: skip
    if name == "voyage":
        return VoyageEmbedder(
            voyage_api_key, model or "voyage-4", dimensions, voyage_base_url, meter=meter, redis_url=redis_url
        )
    raise SettingsError(f"ASKFOLDER_EMBEDDER is {name!r}; it must be local, openai or voyage.")


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


# --- on this machine


class LocalEmbedder(Embedder):
    """A sentence-transformers model exported to ONNX, from a directory, on the CPU.

    The directory holds model.onnx or onnx/model.onnx, tokenizer.json and, where the model needs them, the configuration
    files of sentence-transformers (maximum length, pooling, prompts). SettingsError: something is missing or unknown.
    The model is loaded on first use, in the process that uses it: its threads do not survive a fork.
    """

    name = "local"
    batch_inputs = 64
    batch_tokens = 32_768

    def __init__(self, directory: Path, threads: int = 1) -> None:
        """`threads`: that one run may use."""
        self._model_path = find_model(directory, "ASKFOLDER_EMBEDDING_MODEL", "embedding model")
        self._threads = threads
        self._sessions: dict[int, Any] = {}
        self._lock = threading.Lock()

        ours = _json(directory / CONFIG)
        self.model = ours.get("model") or f"{directory.resolve().name}-{_fingerprint(self._model_path)}"
        self._pooling = _pooling(directory)
        prompts = _json(directory / "config_sentence_transformers.json").get("prompts") or {}
        self._question_prompt = str(prompts.get("query") or "")
        self._passage_prompt = str(prompts.get("document") or prompts.get("passage") or "")
        self._tokenizer = read_tokenizer(directory)
        self._before, self._after = self._special_tokens()
        self._room = max_length(directory, ours) - len(self._before) - len(self._after)
        self.max_tokens = self._room - len(self._ids([self._passage_prompt])[0])
        self.dimensions = int(ours.get("dimensions") or self._run([self._before + self._after]).shape[1])

    def count(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self._ids(texts)]

    def embed(self, texts: Sequence[str]) -> Vectors:
        """As Embedder.embed. A text beyond `max_tokens` is embedded in parts, and gets the direction of their mean."""
        return self._embed([self._passage_prompt + text for text in _filled(texts)])

    def embed_question(self, text: str) -> Vectors:
        vector: Vectors = self._embed([self._question_prompt + _filled([text])[0]])[0]
        return vector

    def close(self) -> None:
        self._sessions.pop(os.getpid(), None)

    def _embed(self, texts: Sequence[str]) -> Vectors:
        parts: list[list[int]] = []
        owners: list[int] = []
        for owner, ids in enumerate(self._ids(texts)):
            size = math.ceil(len(ids) / math.ceil(max(len(ids), 1) / self._room)) or 1
            for start in range(0, max(len(ids), 1), size):
                parts.append(ids[start : start + size])
                owners.append(owner)
        summed = np.zeros((len(texts), self.dimensions), np.float64)
        order = sorted(range(len(parts)), key=lambda index: len(parts[index]))
        while order:
            # Rows of like length, about a thousand tokens at a time: the quickest on a CPU, and it bounds the memory.
            longest = len(parts[order[min(31, len(order) - 1)]]) + len(self._before) + len(self._after)
            rows = max(1, min(32, 1024 // longest))
            chosen, order = order[:rows], order[rows:]
            vectors = self._run([self._before + parts[index] + self._after for index in chosen])
            for index, vector in zip(chosen, vectors, strict=True):
                summed[owners[index]] += vector * max(len(parts[index]), 1)
        return _unit(summed)

    def _run(self, rows: list[list[int]]) -> Vectors:
        """Token ids with special tokens → L2-normalised vectors."""
        session = self._session()
        ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
        mask = np.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = 1
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        asked = [node.name for node in session.get_inputs()]
        if not set(asked) <= set(given):
            raise SettingsError(f"{self._model_path} asks for {', '.join(asked)}: it is not a text embedding model.")
        names = [node.name for node in session.get_outputs()]
        wanted = next((name for name in ("sentence_embedding", "last_hidden_state") if name in names), names[0])
        output = session.run([wanted], {name: given[name] for name in asked})[0]
        if output.ndim == 3 and self._pooling == "cls":
            output = output[:, 0]
        elif output.ndim == 3:
            output = (output * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
        return _unit(output)

    def _session(self) -> Any:
        with self._lock:
            # By process, and kept after a fork: destroying the parent's session would wait for threads that are gone.
            if os.getpid() not in self._sessions:
                self._sessions[os.getpid()] = open_model(self._model_path, self._threads)
            return self._sessions[os.getpid()]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self._tokenizer.encode_batch_fast([encodable(text) for text in texts], add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def _special_tokens(self) -> tuple[list[int], list[int]]:
        """What the model puts before and after a text, such as [CLS] and [SEP]."""
        bare = self._tokenizer.encode("a", add_special_tokens=False).ids
        full = self._tokenizer.encode("a").ids
        start = next(at for at in range(len(full)) if full[at : at + len(bare)] == bare)
        return full[:start], full[start + len(bare) :]


def find_model(directory: Path, setting: str, kind: str) -> Path:
    """model.onnx in a directory as sentence-transformers exports them. SettingsError: it, or the tokenizer, is missing."""
    candidates = (directory / "model.onnx", directory / "onnx" / "model.onnx")
    found = next((path for path in candidates if path.is_file()), None)
    if found is None or not (directory / "tokenizer.json").is_file():
        missing = "tokenizer.json" if found else "model.onnx (or onnx/model.onnx)"
        raise SettingsError(
            f"The local {kind} {directory} has no {missing}. {setting} must be "
            "a directory that holds a sentence-transformers model exported to ONNX."
        )
    return found


def read_tokenizer(directory: Path) -> Tokenizer:
    """tokenizer.json, neither cutting nor padding. SettingsError: it cannot be read."""
    try:
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    except Exception as error:  # the Rust side raises plain Exception
        raise SettingsError(f"{directory / 'tokenizer.json'} could not be read: {error}.") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def open_model(path: Path, threads: int) -> Any:
    """An ONNX Runtime session on the CPU. `threads`: that one run may use. SettingsError: it is no model."""
    import onnxruntime  # type: ignore[import-untyped]  # 15 MB and .1 s that a process without a local model need not pay

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Several processes share the cores: a waiting thread must sleep, not spin.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Lengths vary from batch to batch: kept buffers would add up.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exceptions have no common base but this
        raise SettingsError(f"The model {path} could not be loaded: {error}") from error


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty when there is no such file."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} could not be read: {error}.") from error
    if not isinstance(value, dict):
        raise SettingsError(f"{path} must hold a JSON object.")
    return value


def _fingerprint(model: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(model.parent.glob("model.onnx*")):  # with model.onnx_data, where large weights are kept
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]


def _pooling(directory: Path) -> str:
    config = _json(directory / "1_Pooling" / "config.json")
    modes = [
        key.removeprefix("pooling_mode_") for key in config if key.startswith("pooling_mode_") and config[key] is True
    ]
    if modes in ([], ["mean_tokens"]):
        return "mean"
    if modes == ["cls_token"]:
        return "cls"
    raise SettingsError(f"The model {directory} pools by {', '.join(modes)}; known are mean_tokens and cls_token.")


def max_length(directory: Path, ours: dict[str, Any]) -> int:
    """Tokens of one input, special tokens included; at most 512, as attention's memory grows with its square."""
    found = (
        ours.get("max_length"),
        _json(directory / "sentence_bert_config.json").get("max_seq_length"),
        _json(directory / "tokenizer_config.json").get("model_max_length"),
    )
    return min(512, next((int(length) for length in found if length), 512))


# --- at a provider


RETRIES = 5
PATIENCE = 60.0  # seconds that one request may take, with its retries
QUESTION_PATIENCE = 10.0  # someone is waiting
SLOW_DOWN = frozenset({429, 503, 529})
DAY = 86_400.0  # seconds
UNSENT = (httpx2.ConnectError, httpx2.ConnectTimeout)
_sleep = time.sleep  # tests replace it

# No text has more tokens than bytes (the providers' tokenizers work on bytes), and an estimate is never below a third
# of the bytes. So a limit divided by three holds for every text.
ESTIMATE_FACTOR = 3
_LETTERS = (string.ascii_letters + string.whitespace).encode()
_ASCII = bytes(range(128))


def estimate_tokens(text: str) -> int:
    """Tokens of a text at OpenAI or Voyage, estimated from above: three letters or blanks a token, all else for itself.

    Measured against cl100k: 1.4 to 2.1 times the truth on documentation, code and tables in many languages; below it
    only where letters make no common words, such as in base64 (0.6).
    """
    data = encodable(text).encode()
    other = len(data.translate(None, _LETTERS))
    beyond_ascii = len(data.translate(None, _ASCII))
    return math.ceil((len(data) - other) / 3 + (other - beyond_ascii) + beyond_ascii * 0.75)


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
        self, api_key: str | None, model: str, dimensions: int | None, base_url: str | None, timeout: float, meter: Meter,
        redis_url: str,
    ) -> None:  # fmt: skip
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
        texts = _filled(texts)
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
        return _unit(vectors)

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


class OpenAIEmbedder(RemoteEmbedder):
    """OpenAI, or any server that speaks its embeddings API."""

    name = "openai"
    label = "OpenAI"
    key_setting = "OPENAI_API_KEY"
    default_url = "https://api.openai.com/v1"
    known_dimensions: Mapping[str, int] = {
        "text-embedding-3-small": 1536,
        "text-embedding-3-large": 3072,
        "text-embedding-ada-002": 1536,
    }
    max_tokens = 8_191 // ESTIMATE_FACTOR
    batch_tokens = 300_000 // ESTIMATE_FACTOR

    def __init__(
        self,
        api_key: str | None,
        model: str = "text-embedding-3-small",
        dimensions: int | None = None,
        base_url: str | None = None,
        timeout: float = 30.0,
        meter: Meter = UNMETERED,
        redis_url: str = "",
    ) -> None:
        super().__init__(api_key, model, dimensions, base_url, timeout, meter, redis_url)
        import openai  # .8 s that only those who use it pay

        self._errors = (openai.APIConnectionError, httpx2.HTTPError)
        self._status_error = openai.APIStatusError
        self._omit = openai.omit
        self._client = openai.OpenAI(
            api_key=self._key,
            base_url=self._url,
            max_retries=0,
            http_client=openai.DefaultHttpxClient(trust_env=not is_loopback(self._url)),
        )

    def close(self) -> None:
        self._client.close()
        self._pace.close()

    def _post(self, texts: Sequence[str], kind: Literal["document", "query"], timeout: float) -> httpx2.Response:
        try:
            answer = self._client.embeddings.with_raw_response.create(
                input=list(texts),
                model=self.model,
                encoding_format="base64",
                dimensions=self._omit if self._asked_dimensions is None else self._asked_dimensions,
                timeout=timeout,
            )
        except self._status_error as error:
            return error.response
        except self._errors as error:
            raise self._silence(error) from None
        return answer.http_response


class VoyageEmbedder(RemoteEmbedder):
    """Voyage AI, over plain HTTP: its own SDK brings half a machine-learning stack."""

    name = "voyage"
    label = "Voyage"
    key_setting = "VOYAGE_API_KEY"
    default_url = "https://api.voyageai.com/v1"
    known_dimensions: Mapping[str, int] = dict.fromkeys(("voyage-4-large", "voyage-4", "voyage-4-lite"), 1024)
    max_tokens = 32_000 // ESTIMATE_FACTOR
    batch_tokens = 100_000 // ESTIMATE_FACTOR

    def __init__(
        self,
        api_key: str | None,
        model: str = "voyage-4",
        dimensions: int | None = None,
        base_url: str | None = None,
        timeout: float = 30.0,
        meter: Meter = UNMETERED,
        redis_url: str = "",
    ) -> None:
        super().__init__(api_key, model, dimensions, base_url, timeout, meter, redis_url)
        self._client = self._connections()

    def close(self) -> None:
        self._client.close()
        self._pace.close()

    def _post(self, texts: Sequence[str], kind: Literal["document", "query"], timeout: float) -> httpx2.Response:
        # Without truncation=false a text that is too long would be cut off in silence.
        body = {"input": list(texts), "model": self.model, "input_type": kind, "truncation": False}
        if self._asked_dimensions is not None:
            body["output_dimension"] = self._asked_dimensions
        try:
            return self._client.post(f"{self._url}/embeddings", json=body, timeout=timeout)
        except httpx2.HTTPError as error:
            raise self._silence(error) from None


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


def _unit(vectors: npt.NDArray[Any]) -> Vectors:
    """Rows scaled to length 1, computed in float64. PermanentError: a row is zero or not finite."""
    exact = vectors.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise PermanentError("The embedding model made a vector that is zero or not finite.")
    return np.asarray(exact / lengths, np.float32)


def _filled(texts: Sequence[str]) -> list[str]:
    """The texts as they can be sent. ValueError: one is blank, which providers refuse, and which no chunk may be."""
    if not all(text.strip() for text in texts):
        raise ValueError("A blank text cannot be embedded.")
    return [encodable(text) for text in texts]


def encodable(text: str) -> str:
    """The text without lone surrogates, which a JSON request may smuggle in and UTF-8 cannot carry."""
    return text.encode("utf-8", "replace").decode("utf-8")
