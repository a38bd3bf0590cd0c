"""Embeddings by an ONNX model on this machine."""

import hashlib
import json
import math
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from shared.errors import SettingsError
from shared.providers.embedder import Embedder, Kind, Vectors, unit
from shared.providers.minilm import CONFIG
from shared.text.tokens import encodable


class LocalEmbedder(Embedder):
    """Run a sentence-transformers model, exported to ONNX, on the CPU.

    Its directory contains model.onnx or onnx/model.onnx, tokenizer.json and, if the model needs them, the configuration
    files of sentence-transformers (maximum length, pooling, prompts). SettingsError: a file is missing or unsupported.
    Each process loads the model on first use: ONNX Runtime's threads do not survive a fork.
    """

    name = "local"
    batch_inputs = 64
    batch_tokens = 32_768

    def __init__(self, directory: Path, threads: int = 1) -> None:
        """`threads`: the CPU threads of one run. `sessions`: the loaded model, by process id."""
        self._model_path = find_model(directory, "ASKFOLDER_EMBEDDING_MODEL", "embedding model")
        self._threads = threads
        self.sessions: dict[int, Any] = {}
        self._lock = threading.Lock()

        config = _json(directory / CONFIG)
        self.model = config.get("model") or f"{directory.resolve().name}-{_fingerprint(self._model_path)}"
        self._pooling = _pooling(directory)
        prompts = _json(directory / "config_sentence_transformers.json").get("prompts") or {}
        self._prompts: dict[Kind, str] = {
            "query": str(prompts.get("query") or ""),
            "document": str(prompts.get("document") or prompts.get("passage") or ""),
        }
        self._tokenizer = read_tokenizer(directory)
        self._before, self._after = self._special_tokens()
        self._room = max_length(directory, config) - len(self._before) - len(self._after)
        self.max_tokens = self._room - len(self._ids([self._prompts["document"]])[0])
        self.dimensions = int(config.get("dimensions") or self._run([self._before + self._after]).shape[1])

    def count(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self._ids(texts)]

    def close(self) -> None:
        self.sessions.pop(os.getpid(), None)

    def embed_batch(self, texts: Sequence[str], kind: Kind) -> Vectors:
        """Embed texts of any length: one beyond `max_tokens` gets the direction of the mean of its parts."""
        parts: list[list[int]] = []
        owners: list[int] = []
        for owner, ids in enumerate(self._ids([self._prompts[kind] + text for text in texts])):
            size = math.ceil(len(ids) / math.ceil(max(len(ids), 1) / self._room)) or 1
            for start in range(0, max(len(ids), 1), size):
                parts.append(ids[start : start + size])
                owners.append(owner)
        summed = np.zeros((len(texts), self.dimensions), np.float64)
        order = sorted(range(len(parts)), key=lambda index: len(parts[index]))
        while order:
            # Rows of similar length, about a thousand tokens per run: fastest on a CPU, and memory stays bounded.
            longest = len(parts[order[min(31, len(order) - 1)]]) + len(self._before) + len(self._after)
            rows = max(1, min(32, 1024 // longest))
            chosen, order = order[:rows], order[rows:]
            vectors = self._run([self._before + parts[index] + self._after for index in chosen])
            for index, vector in zip(chosen, vectors, strict=True):
                summed[owners[index]] += vector * max(len(parts[index]), 1)
        return unit(summed)

    def _run(self, rows: list[list[int]]) -> Vectors:
        """Run the model on token ids that include special tokens. Returns L2-normalised vectors."""
        session = self._session()
        ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
        mask = np.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = 1
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        names = [node.name for node in session.get_inputs()]
        if not set(names) <= set(inputs):
            raise SettingsError(f"{self._model_path} needs {', '.join(names)}: it is not a text embedding model.")
        outputs = [node.name for node in session.get_outputs()]
        wanted = next((name for name in ("sentence_embedding", "last_hidden_state") if name in outputs), outputs[0])
        output = session.run([wanted], {name: inputs[name] for name in names})[0]
        if output.ndim == 3 and self._pooling == "cls":
            output = output[:, 0]
        elif output.ndim == 3:
            output = (output * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
        return unit(output)

    def _session(self) -> Any:
        with self._lock:
            # After a fork the parent's session is kept: its destructor would wait for threads that no longer exist.
            if os.getpid() not in self.sessions:
                self.sessions[os.getpid()] = open_model(self._model_path, self._threads)
            return self.sessions[os.getpid()]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self._tokenizer.encode_batch_fast([encodable(text) for text in texts], add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def _special_tokens(self) -> tuple[list[int], list[int]]:
        """Token ids that the model adds before and after a text, such as [CLS] and [SEP]."""
        bare = self._tokenizer.encode("a", add_special_tokens=False).ids
        full = self._tokenizer.encode("a").ids
        start = next(at for at in range(len(full)) if full[at : at + len(bare)] == bare)
        return full[:start], full[start + len(bare) :]


def find_model(directory: Path, setting: str, kind: str) -> Path:
    """Find model.onnx in an exported directory. SettingsError: the model or its tokenizer is missing."""
    candidates = (directory / "model.onnx", directory / "onnx" / "model.onnx")
    model = next((path for path in candidates if path.is_file()), None)
    if model is None or not (directory / "tokenizer.json").is_file():
        missing = "tokenizer.json" if model else "model.onnx (or onnx/model.onnx)"
        raise SettingsError(
            f"The local {kind} {directory} has no {missing}. {setting} must be "
            "a directory with a sentence-transformers model exported to ONNX."
        )
    return model


def read_tokenizer(directory: Path) -> Tokenizer:
    """Read tokenizer.json, without truncation and padding. SettingsError: it cannot be read."""
    try:
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    except Exception as error:  # the Rust library raises plain Exception
        raise SettingsError(f"{directory / 'tokenizer.json'} could not be read: {error}.") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def open_model(path: Path, threads: int) -> Any:
    """Open an ONNX Runtime session on the CPU, with so many threads per run. SettingsError: the file is not a model."""
    import onnxruntime  # type: ignore[import-untyped]  # 15 MB and 0.1 s, only where it is used

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Several processes share the cores, so a waiting thread must sleep, not spin.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Lengths vary from batch to batch, so cached buffers would add up.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no other common base
        raise SettingsError(f"The model {path} could not be loaded: {error}") from error


def _json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file; empty if the file does not exist."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} could not be read: {error}.") from error
    if not isinstance(value, dict):
        raise SettingsError(f"{path} must contain a JSON object.")
    return value


def _fingerprint(model: Path) -> str:
    """Hash a model's files."""
    digest = hashlib.sha256()
    for path in sorted(model.parent.glob("model.onnx*")):  # model.onnx_data holds large weights
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]


def _pooling(directory: Path) -> str:
    config = _json(directory / "1_Pooling" / "config.json")
    prefix = "pooling_mode_"
    modes = [key.removeprefix(prefix) for key, on in config.items() if key.startswith(prefix) and on is True]
    if modes in ([], ["mean_tokens"]):
        return "mean"
    if modes == ["cls_token"]:
        return "cls"
    raise SettingsError(
        f"The model {directory} pools by {', '.join(modes)}; only mean_tokens and cls_token are supported."
    )


def max_length(directory: Path, config: dict[str, Any]) -> int:
    """Tokens of one input, special tokens included; at most 512, because attention's memory grows with the square."""
    lengths = (
        config.get("max_length"),
        _json(directory / "sentence_bert_config.json").get("max_seq_length"),
        _json(directory / "tokenizer_config.json").get("model_max_length"),
    )
    return min(512, next((int(length) for length in lengths if length), 512))
