"""Embeddings of an ONNX model on this machine."""

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
from shared.providers.embedder import Embedder, Vectors, filled, unit
from shared.providers.minilm import CONFIG
from shared.text.tokens import encodable

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
        return self._embed([self._passage_prompt + text for text in filled(texts)])

    def embed_question(self, text: str) -> Vectors:
        vector: Vectors = self._embed([self._question_prompt + filled([text])[0]])[0]
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
        return unit(summed)

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
        return unit(output)

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
