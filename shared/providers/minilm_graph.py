"""The ONNX graph of all-MiniLM-L6-v2, built from its weights and quantized."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic  # type: ignore[import-untyped]

LAYERS, HEADS, HIDDEN = 6, 12, 384
EMBEDDINGS = ("word_embeddings", "position_embeddings", "token_type_embeddings")


class _Graph:
    """An ONNX graph under construction. Each method adds nodes and returns the name of its output."""

    def __init__(self, weights: dict[str, npt.NDArray[Any]]) -> None:
        self.weights = weights
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def const(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value, dtype), name))
        return name

    def op(self, kind: str, *inputs: str, outputs: Sequence[str] = (), **attributes: Any) -> str:
        outputs = outputs or [f"t{len(self.nodes)}"]
        self.nodes.append(helper.make_node(kind, inputs, outputs, **attributes))
        return outputs[0]

    def dense(self, x: str, *names: str) -> str:
        """Linear layers side by side."""
        weight = np.concatenate([self.weights[f"{name}.weight"].T for name in names], axis=1)
        bias = np.concatenate([self.weights[f"{name}.bias"] for name in names])
        return self.op("Add", self.op("MatMul", x, self.const(weight)), self.const(bias))

    def norm(self, x: str, name: str) -> str:
        scale, bias = self.const(self.weights[f"{name}.weight"]), self.const(self.weights[f"{name}.bias"])
        return self.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=1e-12)

    def embeddings(self) -> str:
        word, place, kind = (self.weights[f"embeddings.{of}.weight"] for of in EMBEDDINGS)
        zero, length = self.const([0], np.int64), self.op("Shape", "input_ids", start=1, end=2)
        # All tokens have the first type, so its row is added to the positions in advance.
        positions = self.op("Slice", self.const(place + kind[0]), zero, length, zero)
        words = self.op("Gather", self.const(word), "input_ids")
        return self.norm(self.op("Add", words, positions), "embeddings.LayerNorm")

    def layer(self, x: str, name: str, mask: str) -> str:
        """One encoder layer. `mask`: 0 for tokens, a large negative number for padding."""
        qkv = self.dense(x, *(f"{name}.attention.self.{part}" for part in ("query", "key", "value")))
        parts = [f"{part}.{name}" for part in "qkv"]
        self.op("Split", qkv, outputs=parts, axis=-1, num_outputs=3)
        heads = self.const([0, 0, HEADS, HIDDEN // HEADS], np.int64)
        q, k, v = (
            self.op("Transpose", self.op("Reshape", part, heads), perm=perm)
            for part, perm in zip(parts, ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True)
        )
        scores = self.op("Mul", self.op("MatMul", q, k), self.const((HIDDEN / HEADS) ** -0.5))
        attended = self.op("MatMul", self.op("Softmax", self.op("Add", scores, mask), axis=-1), v)
        merged = self.const([0, 0, HIDDEN], np.int64)
        attended = self.op("Reshape", self.op("Transpose", attended, perm=[0, 2, 1, 3]), merged)
        attended = self.dense(attended, f"{name}.attention.output.dense")
        x = self.norm(self.op("Add", x, attended), f"{name}.attention.output.LayerNorm")
        inner = self.dense(self.op("Gelu", self.dense(x, f"{name}.intermediate.dense")), f"{name}.output.dense")
        return self.norm(self.op("Add", x, inner), f"{name}.output.LayerNorm")


def graph(weights: dict[str, npt.NDArray[Any]]) -> onnx.ModelProto:
    """Build the float32 graph: input_ids, attention_mask, int64 (n, length) → sentence_embedding, float32 (n, 384).

    BERT (Devlin et al. 2019) and the mean of its last layer over the mask, as sentence-transformers defines this model.
    """
    g = _Graph(weights)
    x = g.embeddings()
    mask = g.op("Cast", "attention_mask", to=TensorProto.FLOAT)
    padding = g.op("Mul", g.op("Sub", mask, g.const(1.0)), g.const(1e4))
    padding = g.op("Unsqueeze", padding, g.const([1, 2], np.int64))
    for number in range(LAYERS):
        x = g.layer(x, f"encoder.layer.{number}", padding)
    weighted = g.op("Mul", x, g.op("Unsqueeze", mask, g.const([2], np.int64)))
    one = g.const([1], np.int64)
    mean = g.op("Div", g.op("ReduceSum", weighted, one, keepdims=0), g.op("ReduceSum", mask, one, keepdims=1))
    g.op("LpNormalization", mean, outputs=["sentence_embedding"], axis=-1, p=2)

    tensor = helper.make_tensor_value_info
    inputs = [tensor(name, TensorProto.INT64, ["n", "length"]) for name in ("input_ids", "attention_mask")]
    outputs = [tensor("sentence_embedding", TensorProto.FLOAT, ["n", HIDDEN])]
    body = helper.make_graph(g.nodes, "all-MiniLM-L6-v2", inputs, outputs, g.constants)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def quantize(model: onnx.ModelProto, path: Path) -> None:
    """Write `model` with int8 weights to `path`.

    `reduce_range` limits the weights to 7 bits: processors without VNNI multiply bytes with saturation, so that their
    vectors would differ from those of other machines.
    """
    helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})  # the graph is simple already
    quantize_dynamic(model, path, per_channel=True, reduce_range=True, weight_type=QuantType.QInt8)
