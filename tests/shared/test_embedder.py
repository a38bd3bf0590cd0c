"""Embedders: the local model against a reference implementation, and faulty providers."""

import json
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr
from tokenizers import Tokenizer

from shared.errors import AskfolderError, PermanentError, SettingsError, TransientError
from shared.models import EmbeddingModel
from shared.providers import minilm, minilm_graph, remote
from shared.providers.choice import embedder_of
from shared.providers.embedder import Embedder, Kind, Vectors, batches, embed_all
from shared.providers.local import LocalEmbedder
from shared.providers.openai import OpenAIEmbedder
from shared.providers.remote import Endpoint, RemoteEmbedder, is_loopback
from shared.providers.voyage import VoyageEmbedder
from shared.settings import ROOT, Settings
from shared.text import tokens
from shared.text.tokens import estimate_tokens
from tests.standins.providers import EmbeddingStandin, OpenAIStandin, VoyageStandin, bag_of_words

KEY = "sk-secret-0123456789"
SENTENCES = (
    "The cat sits on the warm windowsill.",
    "A kitten is resting by the window.",
    "Quarterly revenue rose by twelve percent.",
    "The company's sales grew strongly last quarter.",
    "To install the package, run pip install in a terminal.",
)


@pytest.fixture(scope="module")
def local(model: Path) -> LocalEmbedder:
    return LocalEmbedder(model)


# --- the local model


def reference(weights: dict[str, Any], ids: list[int]) -> Any:
    """Compute BERT's forward pass in float64, written from the paper without the graph. One text → (384,)."""

    def dense(x: Any, name: str) -> Any:
        return x @ weights[f"{name}.weight"].T.astype(float) + weights[f"{name}.bias"]

    def norm(x: Any, name: str) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def heads(x: Any) -> Any:
        return x.reshape(len(ids), 12, 32).transpose(1, 0, 2)

    table = {name: weights[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")}
    x = norm(table["word"][ids] + table["position"][: len(ids)] + table["token_type"][0], "embeddings.LayerNorm")
    for layer in range(6):
        at = f"encoder.layer.{layer}"
        q, k, v = (heads(dense(x, f"{at}.attention.self.{part}")) for part in ("query", "key", "value"))
        scores = np.exp(q @ k.transpose(0, 2, 1) / math.sqrt(32))
        attended = (scores / scores.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(len(ids), 384)
        x = norm(x + dense(attended, f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm")
        inner = dense(x, f"{at}.intermediate.dense")
        inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
        x = norm(x + dense(inner, f"{at}.output.dense"), f"{at}.output.LayerNorm")
    mean = x.mean(0)
    return mean / np.linalg.norm(mean)


@pytest.fixture(scope="module")
def expected() -> Any:
    """Compute the vectors of SENTENCES without ONNX."""
    weights_path, tokenizer_path = minilm.genuine_files()
    weights = minilm.read_weights(weights_path)
    return np.stack([reference(weights, token_ids(tokenizer_path.parent, text)) for text in SENTENCES])


def token_ids(directory: Path, text: str) -> list[int]:
    """Tokenize a text, with [CLS] and [SEP]."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.no_padding()
    return list(tokenizer.encode(text).ids)


def test_vectors_equal_those_of_the_model(local: LocalEmbedder, expected: Any) -> None:
    cosines = (local.embed(SENTENCES) * expected).sum(axis=1)
    assert cosines.mean() > 0.99
    assert cosines.min() > 0.985


def test_the_float_graph_is_exact(tmp_path: Path, model: Path, expected: Any) -> None:
    weights = minilm.read_weights(minilm.genuine_files()[0])
    (tmp_path / "model.onnx").write_bytes(minilm_graph.graph(weights).SerializeToString())
    shutil.copy(model / "tokenizer.json", tmp_path)
    exact = LocalEmbedder(tmp_path)
    assert np.abs(exact.embed(SENTENCES) - expected).max() < 1e-5
    # The values of Hugging Face's Inference API documentation for this model and these sentences.
    texts = ("That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day")
    first, *others = exact.embed(texts)
    assert [float(first @ other) for other in others] == pytest.approx([0.6945773, 0.9429151, 0.2568761], abs=1e-5)
    assert exact.model.startswith(tmp_path.name + "-")
    assert exact.dimensions == 384


def test_similar_meanings_have_similar_vectors(local: LocalEmbedder) -> None:
    vectors = local.embed(SENTENCES)
    assert vectors.dtype == np.float32
    assert vectors.shape == (5, 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    similar = vectors @ vectors.T - 2 * np.eye(5)
    assert similar.argmax(axis=1)[:4].tolist() == [1, 0, 3, 2]
    assert (vectors @ local.embed_question("How do I install it with pip?")).argmax() == 4


def test_a_vector_does_not_depend_on_its_batch(local: LocalEmbedder) -> None:
    texts = [*SENTENCES, "short", " ".join(["long"] * 200), *SENTENCES[::-1]]
    together = local.embed(texts)
    alone = np.concatenate([local.embed([text]) for text in texts])
    assert ((together * alone).sum(axis=1) > 0.98).all()
    assert local.embed([]).shape == (0, 384)


def test_a_long_text_is_embedded_completely(local: LocalEmbedder) -> None:
    start = "The cat sits on the warm windowsill. " * 60
    end = "Quarterly revenue rose by twelve percent. " * 60
    assert local.count([start + end])[0] > 3 * local.max_tokens
    complete, first, last = local.embed([start + end, start, end])
    assert complete @ last > 0.5
    assert complete @ first > 0.5
    assert local.embed_question(start + end) @ last > 0.5


def test_counts_equal_those_of_the_tokenizer(local: LocalEmbedder) -> None:
    assert local.count(["", "cat", "unbelievable cats", "cat " * 1000]) == [
        0,
        1,
        2 + local.count(["unbelievable"])[0] - 1,
        1000,
    ]
    assert local.max_tokens == 254
    assert local.model == "all-MiniLM-L6-v2-int8"


def test_lone_surrogates_and_other_odd_texts_are_embedded(local: LocalEmbedder) -> None:
    assert np.isfinite(local.embed(["\ud800 broken", "\x00", "😀" * 50, "漢字", "\u202e"])).all()
    with pytest.raises(ValueError, match="blank"):
        local.embed(["fine", " \n"])


def _child(embedder: LocalEmbedder, queue: Any) -> None:
    queue.put((embedder.embed(["after the fork " * 20] * 8).sum(), list(embedder.sessions)))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_loaded_model_survives_a_fork(model: Path) -> None:
    local = LocalEmbedder(model, threads=2)
    expected = local.embed(["after the fork " * 20] * 8).sum()
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_child, args=(local, queue))
    child.start()
    child.join(10)
    exitcode = child.exitcode
    child.kill()
    assert exitcode == 0
    total, owners = queue.get()
    assert total == pytest.approx(expected)
    assert owners == [os.getpid(), child.pid]  # a fork has no threads of its parent: the child must load its own model


# --- preparation of the local model


def test_prepare_accepts_a_complete_model_and_repairs_a_damaged_one(model: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(model, tmp_path / "with a space" / "model"))
    builds: list[Path] = []
    assert minilm.prepare(copy, builds.append) == copy
    assert builds == []
    (copy / "model.onnx").write_bytes((copy / "model.onnx").read_bytes()[:-1])
    minilm.prepare(copy, builds.append)
    (copy / minilm.CONFIG).write_text("[]")
    minilm.prepare(copy, builds.append)
    assert builds == [copy, copy]


def test_concurrent_preparation_builds_the_model_once(tmp_path: Path, model: Path) -> None:
    builds: list[Path] = []

    def build(directory: Path) -> None:
        builds.append(directory)
        time.sleep(0.2)
        shutil.copytree(model, directory, dirs_exist_ok=True)

    threads = [threading.Thread(target=minilm.prepare, args=(tmp_path / "new", build)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1
    assert minilm.is_whole(tmp_path / "new")


def test_prepare_reports_the_cause_of_a_failure(tmp_path: Path, monkeypatch: Any) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(minilm, "WEIGHTS_SHA256", "0" * 64)
        with pytest.raises(SettingsError, match=r"model\.safetensors is not the genuine file"):
            minilm.prepare(tmp_path / "a")
        assert not (tmp_path / "a" / "model.onnx").exists()
    with monkeypatch.context() as patch:
        patch.setattr(minilm, "PACKAGE", "no_such_package")
        with pytest.raises(SettingsError, match="not installed"):
            minilm.prepare(tmp_path / "b")
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="could not be written"):
        minilm.prepare(tmp_path / "file" / "c")


# --- the user's own model directories


def own_model(tmp_path: Path, files: dict[str, Any], output: str = "last_hidden_state") -> Path:
    """Create a model with four dimensions; its last hidden state at a token of id i is (i, 1, position, 0)."""
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["token_type_ids"], ["zeros"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["zeros", "one"], ["ones"]),
        helper.make_node("CumSum", ["ones", "axis"], ["places"], exclusive=1),
        helper.make_node("Unsqueeze", ["ids", "last"], ["a"]),
        helper.make_node("Unsqueeze", ["ones", "last"], ["b"]),
        helper.make_node("Unsqueeze", ["places", "last"], ["c"]),
        helper.make_node("Unsqueeze", ["zeros", "last"], ["d"]),
        helper.make_node("Concat", ["a", "b", "c", "d"], [output if output == "last_hidden_state" else "e"], axis=-1),
    ]
    if output != "last_hidden_state":
        nodes.append(helper.make_node("ReduceMax", ["e", "axis"], [output], keepdims=0))
    names = ("input_ids", "attention_mask", "token_type_ids")
    graph = helper.make_graph(
        nodes,
        "own",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "length"]) for name in names],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [
            helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]),
            helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
            helper.make_tensor("last", TensorProto.INT64, [1], [2]),
        ],
    )
    graph.initializer[1].dims[:] = [1]
    (tmp_path / "onnx").mkdir()
    opset = [helper.make_opsetid("", 20)]
    (tmp_path / "onnx" / "model.onnx").write_bytes(
        helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()
    )
    shutil.copy(minilm.genuine_files()[1], tmp_path / "tokenizer.json")
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    return tmp_path


def unit(*values: float) -> Any:
    return np.array(values) / np.linalg.norm(values)


def test_mean_pooling_ignores_padding(tmp_path: Path) -> None:
    embedder = LocalEmbedder(own_model(tmp_path, {}))
    ids = token_ids(tmp_path, "cat")
    vectors = embedder.embed(["cat", "cat " * 30])
    assert vectors[0] == pytest.approx(unit(sum(ids) / 3, 1, 1, 0), abs=1e-6)
    assert embedder.dimensions == 4
    assert embedder.max_tokens == 510


def test_cls_pooling_length_and_prompts_are_read_from_the_files(tmp_path: Path) -> None:
    files = {
        "1_Pooling/config.json": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
        "sentence_bert_config.json": {"max_seq_length": 34},
        "config_sentence_transformers.json": {"prompts": {"query": "query: ", "passage": "passage: "}},
    }
    directory = own_model(tmp_path, files)
    embedder = LocalEmbedder(directory)
    assert embedder.embed(["cat"])[0] == pytest.approx(unit(101, 1, 0, 0), abs=1e-6)
    assert embedder.max_tokens == 34 - 2 - 2
    assert embedder.count(["cat"]) == [1]
    shutil.rmtree(directory / "1_Pooling")
    mean = LocalEmbedder(directory)
    for vector, text in ((mean.embed(["cat"])[0], "passage: cat"), (mean.embed_question("cat"), "query: cat")):
        ids = token_ids(directory, text)
        assert vector == pytest.approx(unit(sum(ids) / len(ids), 1, (len(ids) - 1) / 2, 0), abs=1e-6)


def test_a_sentence_embedding_output_is_used_unchanged(tmp_path: Path) -> None:
    embedder = LocalEmbedder(own_model(tmp_path, {}, "sentence_embedding"))
    ids = token_ids(tmp_path, "cat")
    assert embedder.embed(["cat"])[0] == pytest.approx(unit(max(ids), 1, 2, 0), abs=1e-6)


def test_a_directory_without_a_model_is_refused(tmp_path: Path, model: Path) -> None:
    with pytest.raises(SettingsError, match=r"has no model\.onnx"):
        embedder_of(settings(tmp_path, embedding_model=str(tmp_path / "missing")))
    shutil.copy(model / "model.onnx", tmp_path)
    with pytest.raises(SettingsError, match=r"has no tokenizer\.json"):
        LocalEmbedder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(SettingsError, match="could not be read"):
        LocalEmbedder(tmp_path)
    shutil.copy(model / "tokenizer.json", tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(SettingsError, match="could not be loaded"):
        LocalEmbedder(tmp_path)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(SettingsError, match="max_tokens"):
        LocalEmbedder(tmp_path)
    with pytest.raises(SettingsError, match="is 100, but the local model has 384"):
        embedder_of(settings(tmp_path, embedding_model=str(model), embedding_dimensions=100))


# --- batches


class Scripted(Embedder):
    """An embedder that embeds a number as (number, 1, 0) and fails for "x"."""

    name = "scripted"
    model = "scripted"
    dimensions = 3
    max_tokens = 100
    batch_inputs = 3
    batch_tokens = 100

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def count(self, texts: Sequence[str]) -> list[int]:
        return [1] * len(texts)

    def embed_batch(self, texts: Sequence[str], kind: Kind) -> Vectors:
        self.calls.append(list(texts))
        if "x" in texts:
            raise TransientError("as told")
        return np.array([[float(text), 1, 0] for text in texts], np.float32)


def test_batches_respect_the_limits_and_are_complete() -> None:
    embedder = Scripted()
    counts = [60, 1, 50, 50, 2, 100, 3, 4, 30, 0, 500]
    found = list(batches(embedder, counts))
    assert sorted(index for batch in found for index in batch) == list(range(len(counts)))
    for batch in found:
        assert len(batch) <= 3
        assert len(batch) == 1 or sum(counts[index] for index in batch) <= 100
    assert [counts[index] for batch in found for index in batch] == sorted(counts)
    assert list(batches(embedder, [])) == []


def test_every_batch_is_returned_before_the_next_request() -> None:
    embedder = Scripted()
    got: dict[int, float] = {}

    def on_batch(indexes: list[int], vectors: Vectors) -> None:
        got.update(zip(indexes, vectors[:, 0].tolist(), strict=True))
        assert len(got) == sum(map(len, embedder.calls)), "what a dying process has paid for in vain is one batch"

    embed_all(embedder, [str(number) for number in range(40)], on_batch)
    assert got == {number: float(number) for number in range(40)}
    embed_all(embedder, [], on_batch)


def test_a_failing_batch_stops_the_rest() -> None:
    embedder = Scripted()
    got: list[int] = []
    texts = [*map(str, range(6)), "x", *map(str, range(7, 60))]  # the third of twenty batches fails
    with pytest.raises(TransientError, match="as told"):
        embed_all(embedder, texts, lambda indexes, _: got.extend(indexes))
    assert len(embedder.calls) == 3
    assert got == list(range(6))


def test_an_error_of_the_caller_stops_the_embedding() -> None:
    embedder = Scripted()
    with pytest.raises(ZeroDivisionError):
        embed_all(embedder, [str(number) for number in range(60)], lambda *_: 1 // 0)  # type: ignore[arg-type]
    assert len(embedder.calls) == 1


# --- providers


@pytest.fixture(params=["openai", "voyage"])
def provider(request: Any) -> Iterator[tuple[EmbeddingStandin, Callable[..., RemoteEmbedder]]]:
    standin_class, embedder_class = {
        "openai": (OpenAIStandin, OpenAIEmbedder),
        "voyage": (VoyageStandin, VoyageEmbedder),
    }[request.param]
    opened: list[RemoteEmbedder] = []
    with standin_class() as standin:

        def make(**options: Any) -> RemoteEmbedder:
            opened.append(embedder_class(**{"endpoint": standin.endpoint(KEY), **options}))
            return opened[-1]

        yield standin, make
        for embedder in opened:
            embedder.close()


Provider = tuple[EmbeddingStandin, Callable[..., RemoteEmbedder]]


def test_vectors_are_returned_as_the_provider_sent_them(provider: Provider) -> None:
    standin, make = provider
    embedder = make()
    vectors = embedder.embed(SENTENCES)
    assert vectors == pytest.approx(np.array([bag_of_words(text, embedder.dimensions) for text in SENTENCES]), abs=1e-6)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    question = embedder.embed_question("How much did revenue rise?")
    assert (vectors @ question).argmax() == 2
    assert embedder.embed([]).shape == (0, embedder.dimensions)
    assert len(standin.requests) == 2
    assert standin.requests[0]["headers"]["authorization"] == f"Bearer {KEY}"
    assert standin.requests[0]["path"] == "/v1/embeddings"


def test_requests_have_the_format_of_the_provider() -> None:
    with OpenAIStandin() as openai, VoyageStandin() as voyage:
        first = OpenAIEmbedder(openai.endpoint(KEY))
        second = VoyageEmbedder(voyage.endpoint(KEY))
        for embedder in (first, second):
            embedder.embed(["a text"])
            embedder.embed_question("a question")
            embedder.close()
        shortened = OpenAIEmbedder(openai.endpoint(KEY), "text-embedding-3-large", 256)
        assert shortened.embed(["a text"]).shape == (1, 256)
        other = VoyageEmbedder(voyage.endpoint(KEY), "voyage-next", 512)
        assert other.embed(["a text"]).shape == (1, 512)
        shortened.close()
        other.close()
    bodies = [request["body"] for request in openai.requests]
    assert bodies[0] == {"input": ["a text"], "model": "text-embedding-3-small", "encoding_format": "base64"}
    assert bodies[2]["dimensions"] == 256
    kinds = [request["body"]["input_type"] for request in voyage.requests]
    assert kinds == ["document", "query", "document"]
    assert all(request["body"]["truncation"] is False for request in voyage.requests)
    assert "output_dimension" not in voyage.requests[0]["body"]
    assert voyage.requests[2]["body"]["output_dimension"] == 512


def test_a_thousand_chunks_take_at_most_twelve_requests(provider: Provider) -> None:
    standin, make = provider
    standin.delay = 0.05
    embedder = make()
    texts = [f"chunk {number} " + "of words " * 30 for number in range(1000)]
    got: dict[int, Any] = {}
    embed_all(embedder, texts, lambda indexes, vectors: got.update(zip(indexes, vectors, strict=True)))
    assert sorted(got) == list(range(1000))
    assert got[617] == pytest.approx(np.array(bag_of_words(texts[617], embedder.dimensions)), abs=1e-6)
    assert len(standin.requests) <= 12


@pytest.mark.parametrize(
    "fault", ["too_few", "too_many", "nan", "zero", "dimension", "not_numbers", "malformed", "cut"]
)
def test_an_invalid_answer_is_requested_again_and_never_returned(provider: Provider, fault: str) -> None:
    standin, make = provider
    standin.misbehave(fault, times=2)
    embedder = make(sleep=lambda _: None)
    assert embedder.embed(SENTENCES) == pytest.approx(
        np.array([bag_of_words(text, embedder.dimensions) for text in SENTENCES]), abs=1e-6
    )
    assert len(standin.requests) == 3
    standin.misbehave(fault, times=None)
    with pytest.raises(TransientError) as caught:
        embedder.embed(SENTENCES)
    assert_no_key(caught.value)
    assert len(standin.requests) == 3 + 1 + remote.RETRIES


def test_vectors_in_another_order_are_sorted(provider: Provider) -> None:
    standin, make = provider
    standin.misbehave("shuffled")
    embedder = make(sleep=lambda seconds: pytest.fail(f"slept {seconds} s"))
    assert embedder.embed(SENTENCES) == pytest.approx(
        np.array([bag_of_words(text, embedder.dimensions) for text in SENTENCES]), abs=1e-6
    )


@pytest.mark.parametrize("status", ["429", "500", "529"])
def test_requests_to_a_busy_provider_are_retried_with_growing_pauses(provider: Provider, status: str) -> None:
    standin, make = provider
    naps: list[float] = []
    standin.misbehave(status, times=None)
    with pytest.raises(TransientError) as caught:
        make(sleep=naps.append).embed(SENTENCES)
    assert status in str(caught.value)
    assert len(standin.requests) == 1 + remote.RETRIES
    assert len(naps) == remote.RETRIES
    assert all(2**attempt / 2 <= nap <= 2**attempt for attempt, nap in enumerate(naps))
    assert sum(naps) < remote.PATIENCE


def test_retry_after_is_honoured(provider: Provider) -> None:
    standin, make = provider
    standin.misbehave("429", retry_after=1.2)
    started = time.monotonic()
    make().embed(SENTENCES)
    assert time.monotonic() - started >= 1.2
    assert len(standin.requests) == 2


def test_a_long_retry_after_is_passed_to_the_caller(provider: Provider) -> None:
    standin, make = provider
    standin.misbehave("429", times=None, retry_after=300)
    embedder = make(sleep=lambda seconds: pytest.fail(f"slept {seconds} s"))
    with pytest.raises(TransientError) as caught:
        embedder.embed(SENTENCES)
    assert caught.value.retry_after == 300
    assert len(standin.requests) == 1
    standin.behave()
    standin.misbehave("429", times=None, retry_after=20)
    with pytest.raises(TransientError):
        embedder.embed_question("someone is waiting")
    assert len(standin.requests) == 2


def test_missing_credit_is_reported_and_not_retried() -> None:
    with OpenAIStandin() as standin:
        embedder = OpenAIEmbedder(standin.endpoint(KEY), sleep=lambda seconds: pytest.fail(f"slept {seconds} s"))
        standin.misbehave("429", times=None, code="insufficient_quota", message="You exceeded your current quota.")
        with pytest.raises(TransientError, match="no credit left"):
            embedder.embed(SENTENCES)
        assert len(standin.requests) == 1
        embedder.close()


@pytest.mark.parametrize(
    ("status", "message", "error", "says"),
    [
        ("401", f"Incorrect API key provided: {KEY}.", SettingsError, "_API_KEY"),
        ("404", f"The model does not exist, {KEY}.", SettingsError, "ASKFOLDER_EMBEDDING_MODEL"),
        ("400", "Invalid value for 'dimensions'.", SettingsError, "ASKFOLDER_EMBEDDING_DIMENSIONS"),
        ("400", f"The input is bad, {KEY}.", PermanentError, "The input is bad, …."),
    ],
)
def test_a_refusal_is_permanent_and_names_the_setting(
    provider: Provider, status: str, message: str, error: type[AskfolderError], says: str
) -> None:
    standin, make = provider
    standin.misbehave(status, times=None, message=message)
    with pytest.raises(error) as caught:
        make(sleep=lambda seconds: pytest.fail(f"slept {seconds} s")).embed(SENTENCES)
    assert says in str(caught.value)
    assert_no_key(caught.value)
    assert len(standin.requests) == 1


def test_a_silent_or_unreachable_provider_is_a_temporary_error(provider: Provider) -> None:
    standin, make = provider
    naps: list[float] = []
    standin.misbehave("hang", seconds=3)
    assert make(timeout=0.2, sleep=naps.append).embed(SENTENCES).shape[0] == 5  # the minimum of a timeout is one second
    assert len(standin.requests) >= 2
    naps.clear()
    unreachable = make(endpoint=Endpoint("Voyage", KEY, "http://127.0.0.1:9/v1", "VOYAGE_API_KEY"), sleep=naps.append)
    with pytest.raises(TransientError, match=r"127\.0\.0\.1:9 could not be reached") as caught:
        unreachable.embed(SENTENCES)
    assert_no_key(caught.value)
    assert len(naps) == remote.RETRIES


def test_blank_texts_are_never_sent(provider: Provider) -> None:
    standin, make = provider
    embedder = make()
    for texts in ([""], ["fine", " \n"]):
        with pytest.raises(ValueError, match="blank"):
            embedder.embed(texts)
    with pytest.raises(ValueError, match="blank"):
        embedder.embed_question("")
    assert standin.requests == []
    assert embedder.embed(["\ud800 broken"]).shape[0] == 1


def test_loopback_calls_ignore_proxies(provider: Provider, monkeypatch: Any) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert provider[1]().embed(["a text"]).shape[0] == 1
    assert is_loopback("http://localhost:1/v1")
    assert is_loopback("http://[::1]:1/v1")
    assert not is_loopback("https://api.openai.com/v1")


def test_invalid_settings_are_refused(tmp_path: Path) -> None:
    key = SecretStr(KEY)
    with pytest.raises(SettingsError, match="needs OPENAI_API_KEY"):
        embedder_of(settings(tmp_path, embedder="openai"))
    with pytest.raises(SettingsError, match="needs VOYAGE_API_KEY"):
        embedder_of(settings(tmp_path, embedder="voyage", voyage_api_key=SecretStr(" ")))
    with pytest.raises(SettingsError, match="must be local, openai or voyage"):
        embedder_of(settings(tmp_path), model=EmbeddingModel("cohere", "embed-v4"))
    with pytest.raises(SettingsError, match="ASKFOLDER_EMBEDDING_DIMENSIONS"):
        embedder_of(settings(tmp_path, embedder="openai", openai_api_key=key, embedding_model="nomic-embed-text"))
    with pytest.raises(SettingsError, match="must start with"):
        embedder_of(settings(tmp_path, embedder="openai", openai_api_key=key, openai_base_url="localhost:1"))
    with pytest.raises(SettingsError) as caught:
        embedder_of(settings(tmp_path, embedder="openai", openai_api_key=SecretStr(f"{KEY}\nx")))
    assert_no_key(caught.value)
    assert KEY not in repr(Endpoint("OpenAI", KEY, "https://api.example.com/v1", "OPENAI_API_KEY"))
    ollama = embedder_of(
        settings(
            tmp_path,
            embedder="openai",
            embedding_model="nomic-embed-text",
            embedding_dimensions=768,
            openai_base_url="http://127.0.0.1:11434/v1",
        )
    )
    assert (ollama.model, ollama.dimensions) == ("nomic-embed-text", 768)
    ollama.close()


def settings(data: Path, **values: Any) -> Settings:
    return Settings(_env_file=None, data=data, **values)  # type: ignore[call-arg]


def test_a_generation_keeps_its_embedder_when_the_settings_change(tmp_path: Path) -> None:
    older = settings(tmp_path, embedder="openai", openai_api_key=SecretStr(KEY), voyage_api_key=SecretStr(KEY))
    wanted = embedder_of(older)
    assert (wanted.name, wanted.model, wanted.dimensions) == ("openai", "text-embedding-3-small", 1536)
    stored = embedder_of(older, model=EmbeddingModel("voyage", "voyage-4-large", "", 512))
    assert (stored.name, stored.model, stored.dimensions) == ("voyage", "voyage-4-large", 512)
    wanted.close()
    stored.close()


def test_estimated_tokens_are_at_least_a_third_of_the_bytes() -> None:
    # The true counts of cl100k, computed once with bpe-openai 0.1.4.
    known = {
        "The quick brown fox jumps over the lazy dog.": 10,
        "Die Donaudampfschifffahrtsgesellschaft hat ihren Sitz in Wien und fährt täglich.": 26,
        "def embed_all(texts: Sequence[str]) -> None:": 12,
        "3.14159265358979": 7,
        "これは日本語の文章です。": 10,
        "😀🎉🚀": 8,
    }
    for text, true in known.items():
        assert true <= estimate_tokens(text) <= 3 * true, text
    for text in (*known, "QmFzZTY0IGlzIG5vdCB3b3Jkcw==" * 20, "\ud800", ""):
        assert estimate_tokens(text) * tokens.ESTIMATE_FACTOR >= len(text.encode("utf-8", "replace"))


def assert_no_key(error: BaseException | None) -> None:
    """Check that neither the message nor any chained error in a log contains the key."""
    while error is not None:
        assert KEY not in str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def test_an_import_does_not_load_optional_libraries() -> None:
    program = (
        "import sys, shared.providers.local; assert not {'onnx', 'onnxruntime', 'openai', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    "code",
    [
        "from shared.providers.local import LocalEmbedder; LocalEmbedder(Path(sys.argv[1])).embed(['a'])",
        "from shared.providers.minilm import prepare; prepare(Path(sys.argv[2]))",
    ],
)
def test_onnx_runtime_sends_no_telemetry(code: str, model: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    env = {**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT)}
    env.pop("ORT_DISABLE_TELEMETRY", None)
    program = f"import sys; from pathlib import Path; {code}"
    subprocess.run(
        [sys.executable, "-c", program, str(model), str(tmp_path / "made")], env=env, check=True, timeout=120
    )
    assert list(home.rglob("*")) == []
