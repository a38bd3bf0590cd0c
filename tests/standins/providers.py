"""Small real HTTP servers on loopback that speak the wire formats of OpenAI, Voyage and Anthropic, for tests.

    with OpenAIStandin() as openai:
        openai.misbehave("429", times=2, retry_after=0.1)
        ...  # base URL: openai.url, received requests: openai.requests

By hand: python -m tests.standins openai|voyage|anthropic --port 9000
"""

import argparse
import base64
import contextlib
import hashlib
import json
import math
import re
import struct
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from shared.providers.remote import Endpoint

NO_ANSWER = "I don't have information on that."
COMMON = """a about an and any are as at be by can did do does for from had has have how i in is it its many much
of on or should that the their them there they this to was we were what when where which who why will with you your"""
STOP_WORDS = frozenset(COMMON.split())

Block = dict[str, Any]
Reply = Callable[[dict[str, Any]], list[Block]]


def words(text: str) -> list[str]:
    """Return lower-case words without a plural s, so that "cats" and "cat" are equal."""
    return [word.removesuffix("s") if len(word) > 3 else word for word in re.findall(r"\w+", text.lower())]


def bag_of_words(text: str, dimensions: int) -> list[float]:
    """Return a deterministic unit vector: each word adds ±1 at four positions given by its hash.

    Texts with common words have similar vectors.
    """
    vector = [0.0] * dimensions
    for word in words(text) or [text]:
        weight = 0.2 if word in STOP_WORDS else 1.0
        digest = hashlib.sha256(word.encode("utf-8", "replace")).digest()
        for start in range(0, 20, 5):
            (place,) = struct.unpack_from(">I", digest, start)
            vector[place % dimensions] += weight if digest[start + 4] % 2 else -weight
    length = math.sqrt(sum(value * value for value in vector))
    if length == 0:
        vector[0] = length = 1.0
    return [value / length for value in vector]


class Handler(BaseHTTPRequestHandler):
    """Read one JSON request, record it, and let the stand-in answer or misbehave."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else the second piece of an answer waits for 40 ms
    server: "Server"

    def do_POST(self) -> None:
        standin = self.server.standin
        raw = self.rfile.read(int(self.headers.get("content-length", 0)))
        try:
            body = json.loads(raw)
        except ValueError:
            body = None
        fault = standin.record(self.path, {key.lower(): value for key, value in self.headers.items()}, body)
        try:
            standin.answer(self, body, fault)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def send_json(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        self.send_bytes(status, json.dumps(body).encode(), headers)

    def send_bytes(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {
            "content-type": "application/json",
            "content-length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def cut(self, data: bytes = b"") -> None:
        """Send these bytes unchanged, and close the connection."""
        self.wfile.write(data)
        self.wfile.flush()
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        if self.server.standin.verbose:
            super().log_message(format, *args)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    standin: "Standin"


class Standin:
    """A server in a thread. `requests`: path, time, headers and body of each request so far, in order of arrival.

    `in_flight`: requests that are not answered yet. `closing`: set when the server ends.
    """

    version_path = "/v1"  # the part of the path that the SDK does not append
    faults: frozenset[str] = frozenset({"400", "401", "404", "429", "500", "529", "hang", "malformed", "cut"})

    def __init__(self, port: int = 0, verbose: bool = False, delay: float = 0.0) -> None:
        """Start the server. `delay`: seconds before every answer."""
        self.verbose = verbose
        self.delay = delay
        self.usage_times = 1  # reported tokens for each word
        self.requests: list[dict[str, Any]] = []
        self.most_in_flight = 0
        self.in_flight = 0
        self._faults: list[tuple[str, dict[str, Any]]] = []
        self._always: tuple[str, dict[str, Any]] | None = None
        self._lock = threading.Lock()
        self.closing = threading.Event()
        self._server = Server(("127.0.0.1", port), Handler)
        self._server.standin = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}{self.version_path}"

    def misbehave(self, fault: str, times: int | None = 1, **options: Any) -> None:
        """Spoil the next `times` requests, or all of them (None). Calls queue up.

        "400", "401", "404", "429", "500", "529": that status, with `retry_after` (seconds), `message` and `code`;
        "hang": silence for `seconds`; "malformed": no JSON; "cut": closes the connection in the middle.
        Embeddings: "too_few", "too_many", "shuffled" (with right indexes), "nan", "zero", "dimension", "not_numbers".
        Reranking: "too_few", "too_many", "shuffled", "nan", "not_numbers".
        Anthropic streams, after some text (`spoil_after` pieces): "error_event" (an SSE error), "cut_stream" (the HTTP
        answer ends properly, but without the last events, which a client easily takes for the end), "broken_stream"
        (the connection breaks), "malformed_event" (no JSON), "stall" (pings and nothing else).
        """
        if fault not in self.faults:
            raise ValueError(f"{type(self).__name__} cannot misbehave as {fault!r}.")
        with self._lock:
            if times is None:
                self._always = (fault, options)
            else:
                self._faults += [(fault, options)] * times

    def behave(self) -> None:
        """Forget every fault."""
        with self._lock:
            self._faults, self._always = [], None

    def record(self, path: str, headers: dict[str, str], body: Any) -> tuple[str, dict[str, Any]]:
        with self._lock:
            self.requests.append({"path": path, "time": time.monotonic(), "headers": headers, "body": body})
            return self._faults.pop(0) if self._faults else self._always or ("", {})

    def answer(self, handler: Handler, body: Any, fault: tuple[str, dict[str, Any]]) -> None:
        with self._lock:
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self.delay:
                self.closing.wait(self.delay)
            name, options = fault
            if name == "hang":
                self.closing.wait(options.get("seconds", 60.0))
            if name.isdigit():
                self.refuse(handler, int(name), **options)
            elif name == "malformed":
                handler.send_bytes(200, b'{"object": "list", "data": [{"embed')
            elif name == "cut":
                handler.cut(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9999\r\n\r\n{")
            elif not isinstance(body, dict):
                self.refuse(handler, 400, message="The body is not a JSON object.")
            else:
                self.serve(handler, body, name)
        finally:
            with self._lock:
                self.in_flight -= 1

    def refuse(
        self,
        handler: Handler,
        status: int,
        message: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        headers = {} if retry_after is None else {"retry-after": f"{retry_after:g}"}
        handler.send_json(status, self.error_body(status, message or f"Stand-in error {status}.", code), headers)

    @abstractmethod
    def error_body(self, status: int, message: str, code: str | None) -> dict[str, Any]: ...

    @abstractmethod
    def serve(self, handler: Handler, body: dict[str, Any], fault: str) -> None: ...

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


# --- embeddings


class EmbeddingStandin(Standin):
    faults = Standin.faults | {"too_few", "too_many", "shuffled", "nan", "zero", "dimension", "not_numbers"}
    label: str

    def endpoint(self, key: str) -> Endpoint:
        return Endpoint(self.label, key, self.url, f"{self.label.upper()}_API_KEY")

    def data(self, texts: list[str], dimensions: int, as_base64: bool, fault: str) -> list[dict[str, Any]]:
        vectors: list[Any] = [bag_of_words(text, dimensions + (fault == "dimension")) for text in texts]
        if fault == "nan":
            vectors[-1][0] = math.nan
        elif fault == "zero":
            vectors[-1] = [0.0] * dimensions
        if as_base64:
            vectors = [base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() for vector in vectors]
        if fault == "not_numbers":
            vectors[-1] = "not a vector" if as_base64 else ["not", "a", "vector"]
        data = [{"object": "embedding", "index": at, "embedding": vector} for at, vector in enumerate(vectors)]
        if fault == "too_few":
            data = data[:-1]
        elif fault == "too_many":
            data.append({**data[-1], "index": len(data)})
        elif fault == "shuffled":
            data = data[1:] + data[:1]
        return data


class OpenAIStandin(EmbeddingStandin):
    """POST /v1/embeddings with the answers of OpenAI. `url` is the value of OPENAI_BASE_URL."""

    label = "OpenAI"

    def error_body(self, status: int, message: str, code: str | None) -> dict[str, Any]:
        kinds = {401: "invalid_request_error", 429: "requests", 500: "server_error"}
        kind = code or kinds.get(status, "invalid_request_error")
        codes = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}
        return {"error": {"message": message, "type": kind, "param": None, "code": code or codes.get(status)}}

    def serve(self, handler: Handler, body: dict[str, Any], fault: str) -> None:
        if handler.path != "/v1/embeddings":
            self.refuse(handler, 404, f"Invalid URL (POST {handler.path})")
            return
        texts = [body["input"]] if isinstance(body.get("input"), str) else body.get("input")
        if not texts or len(texts) > 2048 or not all(isinstance(text, str) and text for text in texts):
            self.refuse(handler, 400, "'$.input' is invalid. Please check the API reference.")
            return
        tokens = sum(len(words(text)) for text in texts) * self.usage_times
        dimensions = body.get("dimensions") or {"text-embedding-3-large": 3072}.get(body["model"], 1536)
        data = self.data(texts, dimensions, body.get("encoding_format") == "base64", fault)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        handler.send_json(200, {"object": "list", "data": data, "model": body["model"], "usage": usage})


class VoyageStandin(EmbeddingStandin):
    """POST /v1/embeddings and /v1/rerank with the answers of Voyage."""

    label = "Voyage"
    rerankers = ("rerank-2.5", "rerank-2.5-lite")

    def error_body(self, status: int, message: str, code: str | None) -> dict[str, Any]:
        return {"detail": message}

    def serve(self, handler: Handler, body: dict[str, Any], fault: str) -> None:
        texts = [body["input"]] if isinstance(body.get("input"), str) else body.get("input")
        if handler.path == "/v1/rerank":
            self.rerank(handler, body, fault)
        elif handler.path != "/v1/embeddings":
            self.refuse(handler, 404, "Not Found")
        elif not texts or len(texts) > 1000 or not all(isinstance(text, str) and text for text in texts):
            self.refuse(handler, 400, "Input cannot contain empty strings or empty lists.")
        elif body.get("input_type") not in (None, "document", "query"):
            self.refuse(handler, 400, f"Value '{body['input_type']}' provided for argument 'input_type' is not valid.")
        else:
            data = self.data(
                texts, body.get("output_dimension") or 1024, body.get("encoding_format") == "base64", fault
            )
            usage = {"total_tokens": sum(len(words(text)) for text in texts) * self.usage_times}
            handler.send_json(200, {"object": "list", "data": data, "model": body["model"], "usage": usage})

    def rerank(self, handler: Handler, body: dict[str, Any], fault: str) -> None:
        """Score each document by its share of the question's words. The best document comes first."""
        query, documents = body.get("query"), body.get("documents")
        if not isinstance(query, str) or not query:
            self.refuse(handler, 400, "Query cannot be empty.")
        elif not documents or len(documents) > 1000 or not all(isinstance(text, str) and text for text in documents):
            self.refuse(handler, 400, "Documents must be a list of 1 to 1,000 strings that are not empty.")
        elif body.get("model") not in self.rerankers:
            self.refuse(
                handler,
                400,
                f"Model {body.get('model')} is not supported. Supported models are {list(self.rerankers)}.",
            )
        else:
            asked = set(words(query)) - STOP_WORDS
            scores: list[Any] = [len(asked & set(words(text))) / max(len(asked), 1) for text in documents]
            data = [{"relevance_score": score, "index": at} for at, score in enumerate(scores)]
            data.sort(key=lambda item: -item["relevance_score"])
            if fault in ("nan", "not_numbers"):
                data[-1]["relevance_score"] = math.nan if fault == "nan" else "high"
            elif fault == "too_few":
                data = data[:-1]
            elif fault == "too_many":
                data.append({**data[-1], "index": len(data)})
            elif fault == "shuffled":
                data = data[1:] + data[:1]
            usage = {"total_tokens": len(words(query)) * len(documents) + sum(len(words(text)) for text in documents)}
            handler.send_json(200, {"object": "list", "data": data, "model": body["model"], "usage": usage})


# --- Anthropic


def text_block(text: str, citations: Sequence[Block] = ()) -> Block:
    """Return a text block of an answer, for `reply`."""
    return {"type": "text", "text": text, "citations": list(citations) or None}


def tool_use(name: str, **arguments: Any) -> Block:
    """Return a block that calls a tool; the stand-in adds the id."""
    return {"type": "tool_use", "id": "", "name": name, "input": arguments}


def search_results(request: dict[str, Any]) -> list[Block]:
    """Return all search_result blocks of a request, in the order of `search_result_index`."""
    found = []
    for message in request["messages"]:
        blocks = message["content"] if isinstance(message["content"], list) else []
        for block in blocks:
            inner = block.get("content") if block["type"] == "tool_result" else None
            found += [
                one for one in [block, *(inner if isinstance(inner, list) else [])] if one["type"] == "search_result"
            ]
    return found


def question_of(request: dict[str, Any]) -> str:
    """Return the last text of the last user message."""
    content = request["messages"][-1]["content"]
    if isinstance(content, str):
        return content
    return next((block["text"] for block in reversed(content) if block["type"] == "text"), "")


def cite(request: dict[str, Any], result: int, start: int, end: int | None = None) -> Block:
    """Return a citation of blocks `start` to `end` (exclusive) of the request's search result number `result`."""
    block = search_results(request)[result]
    end = start + 1 if end is None else end
    return {
        "type": "search_result_location",
        "cited_text": "".join(part["text"] for part in block["content"][start:end]),
        "search_result_index": result,
        "start_block_index": start,
        "end_block_index": end,
        "source": block["source"],
        "title": block["title"],
    }


def quote_best(request: dict[str, Any]) -> list[Block]:
    """Answer with the sentences, at most two, that share the most words with the question; or with the refusal."""
    asked = set(words(question_of(request))) - STOP_WORDS
    scored = []
    for number, result in enumerate(search_results(request)):
        for place, block in enumerate(result["content"]):
            shared = len(asked & set(words(block["text"])))
            if shared:
                scored.append((-shared, number, place, block["text"]))
    if not scored or -min(scored)[0] < (len(asked) + 2) // 3:
        return [text_block(NO_ANSWER)]
    best = sorted(scored)[:2]
    return [text_block(text.strip() + " ", [cite(request, number, place)]) for _, number, place, text in best]


def numbered_passages(request: dict[str, Any]) -> dict[int, str]:
    """Return number → passage of a reranking request."""
    lines = request["messages"][-1]["content"][0]["text"].split("\n")
    return {row["number"]: row["passage"] for row in map(json.loads, lines)}


def order_passages(request: dict[str, Any]) -> list[Block]:
    """Answer with the numbers of the passages, sorted by the number of words shared with the question."""
    asked = set(words(question_of(request))) - STOP_WORDS
    passages = numbered_passages(request)
    return [text_block(json.dumps(sorted(passages, key=lambda number: -len(asked & set(words(passages[number]))))))]


def numbered_chunks(request: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Return number → chunk of a request for contexts."""
    return {row["number"]: row for row in map(json.loads, request["messages"][-1]["content"][-1]["text"].split("\n"))}


def write_contexts(request: dict[str, Any]) -> list[Block]:
    """Answer with a context for each chunk: the document's title and a unique word, "ctx" and a hash of the chunk."""
    title = json.loads(request["messages"][-1]["content"][0]["text"])["document"]
    contexts = [
        f'<context number="{number}">This is from {title}, {context_word(row["chunk"])}.</context>'
        for number, row in numbered_chunks(request).items()
    ]
    return [text_block("\n".join(contexts))]


def context_word(chunk: str) -> str:
    return "ctx" + "".join(chr(97 + digit % 16) for digit in hashlib.sha256(chunk.encode()).digest()[:8])


class AnthropicStandin(Standin):
    """POST /v1/messages and /v1/messages/count_tokens with the answers of Anthropic, in one piece or as a stream.

    The text up to a `cache_control` is cached after its request was answered, if it has 512 tokens (words here);
    `usage` reports it. `url` is the value of ANTHROPIC_BASE_URL. `reply(request)` returns the blocks of the answer
    (`text_block`, `cite`). Tests may also set `stop_reason`, `thinking` (a thinking block comes before the text),
    `citations_first` (in a stream), `pace` (seconds before each event of a stream) and `plain` (search results and
    citations are not supported, as by other servers with this interface). `left` is set when a client disconnects
    before the end of its stream.
    """

    version_path = ""
    faults = Standin.faults | {"error_event", "cut_stream", "broken_stream", "malformed_event", "stall"}

    def __init__(self, port: int = 0, verbose: bool = False, delay: float = 0.0, reply: Reply = quote_best) -> None:
        super().__init__(port, verbose, delay)
        self.reply = reply
        self.stop_reason = "end_turn"
        self.thinking = False
        self.citations_first = False
        self._cached: set[str] = set()
        self.pace = 0.0
        self.spoil_after = 2
        self.plain = False
        self.left = threading.Event()

    def error_body(self, status: int, message: str, code: str | None) -> dict[str, Any]:
        kinds = {
            400: "invalid_request_error",
            401: "authentication_error",
            404: "not_found_error",
            429: "rate_limit_error",
            500: "api_error",
            529: "overloaded_error",
        }
        return {"type": "error", "error": {"type": kinds[status], "message": message}, "request_id": "req_standin"}

    def serve(self, handler: Handler, body: dict[str, Any], fault: str) -> None:
        path = handler.path.partition("?")[0]
        tokens = len(words(json.dumps(body.get("messages", "")))) * self.usage_times
        if path == "/v1/messages/count_tokens":
            handler.send_json(200, {"input_tokens": tokens})
        elif path != "/v1/messages":
            self.refuse(handler, 404, "Not found")
        elif problem := self.problem(body):
            self.refuse(handler, 400, problem)
        else:
            content = self.reply(body)
            for number, block in enumerate(content):
                if block["type"] == "tool_use":
                    block["id"] = f"toolu_{len(self.requests):06}_{number}"
            if self.plain:
                content = [{**block, "citations": None} if block["type"] == "text" else block for block in content]
            if self.thinking:
                content = [{"type": "thinking", "thinking": "Let me see.", "signature": "c3RhbmRpbg=="}, *content]
            kept, beginning = self.beginning(body)
            read = kept if beginning in self._cached else 0
            usage = {
                "input_tokens": max(tokens - kept, 1),
                "cache_creation_input_tokens": kept - read,
                "cache_read_input_tokens": read,
                "output_tokens": sum(len(words(block.get("text", ""))) for block in content) * self.usage_times + 1,
                "service_tier": "standard",
            }
            message = {
                "id": f"msg_{len(self.requests):06}",
                "type": "message",
                "role": "assistant",
                "model": body["model"],
                "content": content,
                "stop_reason": "tool_use"
                if any(block["type"] == "tool_use" for block in content)
                else self.stop_reason,
                "stop_sequence": None,
                "usage": usage,
            }
            if body.get("stream"):
                self.stream(handler, message, fault)
            else:
                handler.send_json(200, message)
            if kept:
                self._cached.add(beginning)

    @staticmethod
    def beginning(body: dict[str, Any]) -> tuple[int, str]:
        """Return tokens and text of a request up to its last `cache_control`; 0 tokens if it cannot be cached."""
        system = body.get("system") or []
        blocks = [{"type": "text", "text": system}] if isinstance(system, str) else list(system)
        for message in body["messages"]:
            blocks += message["content"] if isinstance(message["content"], list) else [message["content"]]
        ends = [at for at, block in enumerate(blocks, 1) if isinstance(block, dict) and block.get("cache_control")]
        text = body["model"] + json.dumps(blocks[: max(ends, default=0)])
        tokens = len(words(text))
        return (tokens, text) if ends and tokens >= 512 else (0, "")

    @staticmethod
    def problem(body: dict[str, Any]) -> str | None:
        """Return the real server's error for a request with a likely mistake of this project; None if it is valid."""
        if missing := [key for key in ("model", "max_tokens", "messages") if key not in body]:
            return f"{missing[0]}: Field required"
        if removed := [key for key in ("temperature", "top_p", "top_k") if key in body]:
            return f"{removed[0]}: Extra inputs are not permitted"
        if body["model"] == "claude-sonnet-5-5":
            if body.get("tool_choice", {}).get("type") in ("any", "tool"):
                return "tool_choice forces tool use, which this model does not support."
            if body.get("thinking", {}).get("type") == "disabled":
                return "thinking: this model does not support disabled thinking."
        if not body["messages"] or body["messages"][-1]["role"] != "user":
            return (
                "This model does not support assistant message prefill. The conversation must end with a user message."
            )
        called = [
            block["id"]
            for message in body["messages"]
            for block in message["content"]
            if isinstance(block, dict) and block["type"] == "tool_use"
        ]
        answered = [
            block["tool_use_id"]
            for message in body["messages"]
            for block in message["content"]
            if isinstance(block, dict) and block["type"] == "tool_result"
        ]
        if called != answered:
            return "messages: each `tool_use` block must have a `tool_result` block in the next message."
        if called and not body.get("tools"):
            return "Requests which include `tool_use` or `tool_result` blocks must define tools."
        results = search_results(body)
        if len({bool((result.get("citations") or {}).get("enabled")) for result in results}) > 1:
            return "Citations must be enabled on all or none of the search results."
        for result in results:
            if not result["content"] or any(
                block["type"] != "text" or not block["text"] for block in result["content"]
            ):
                return "messages: search_result content must be non-empty text blocks"
        return None

    def stream(self, handler: Handler, message: Block, fault: str) -> None:
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream; charset=utf-8")
        handler.send_header("transfer-encoding", "chunked")
        handler.end_headers()
        broken = fault in ("error_event", "cut_stream", "broken_stream", "malformed_event", "stall")
        texts = 0
        try:
            for event in self.events(message, self.citations_first):
                if broken and texts >= self.spoil_after:
                    break
                if self.pace:
                    time.sleep(self.pace)
                self.send_event(handler, event)
                texts += event.get("delta", {}).get("type") == "text_delta"
            if fault == "error_event":
                self.send_event(handler, self.error_body(529, "Overloaded", None))
            elif fault == "malformed_event":
                data = b'event: content_block_delta\ndata: {"type": "content_block_delta", "ind\n\n'
                handler.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            while fault == "stall" and not self.closing.wait(0.02):
                self.send_event(handler, {"type": "ping"})
        except OSError:
            handler.close_connection = True
            self.left.set()
            return
        if fault == "broken_stream":
            handler.cut()
        else:
            handler.wfile.write(b"0\r\n\r\n")

    @staticmethod
    def send_event(handler: Handler, event: Block) -> None:
        data = f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
        handler.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        handler.wfile.flush()

    @staticmethod
    def events(message: Block, citations_first: bool) -> Iterator[Block]:
        usage = message["usage"]
        start = {**message, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
        yield {"type": "message_start", "message": start}
        yield {"type": "ping"}
        for index, block in enumerate(message["content"]):
            bare: Block = {"text": {"text": ""}, "tool_use": {"input": {}}}
            empty = block | bare.get(block["type"], {"thinking": "", "signature": ""})
            if block.get("citations"):
                empty["citations"] = []
            yield {"type": "content_block_start", "index": index, "content_block": empty}
            for delta in AnthropicStandin.deltas(block, citations_first):
                yield {"type": "content_block_delta", "index": index, "delta": delta}
            yield {"type": "content_block_stop", "index": index}
        delta = {"stop_reason": message["stop_reason"], "stop_sequence": None}
        yield {"type": "message_delta", "delta": delta, "usage": {"output_tokens": usage["output_tokens"]}}
        yield {"type": "message_stop"}

    @staticmethod
    def deltas(block: Block, citations_first: bool) -> Iterator[Block]:
        if block["type"] == "thinking":
            yield {"type": "thinking_delta", "thinking": block["thinking"]}
            yield {"type": "signature_delta", "signature": block["signature"]}
            return
        if block["type"] == "tool_use":
            pieces = re.findall(r".{1,12}", json.dumps(block["input"]))
            yield from ({"type": "input_json_delta", "partial_json": piece} for piece in ["", *pieces])
            return
        citations = [{"type": "citations_delta", "citation": one} for one in block.get("citations") or []]
        pieces = re.findall(r"\s*\S{1,12}\s*|\s+", block["text"])
        texts = [{"type": "text_delta", "text": piece} for piece in pieces]
        yield from citations + texts if citations_first else texts + citations


STANDINS: dict[str, type[Standin]] = {"openai": OpenAIStandin, "voyage": VoyageStandin, "anthropic": AnthropicStandin}


def main() -> None:
    parser = argparse.ArgumentParser(description="Run a provider's stand-in until Ctrl-C.")
    parser.add_argument("provider", choices=STANDINS)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds that every answer takes")
    arguments = parser.parse_args()
    with STANDINS[arguments.provider](arguments.port, verbose=True, delay=arguments.delay) as standin:
        print(standin.url, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
