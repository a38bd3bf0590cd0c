"""One attempt at Anthropic's Messages API through its SDK: the stream of events, and errors in plain words."""

import contextlib
import functools
import queue
import socket
import threading
import time
from collections.abc import Generator
from typing import Any

import anthropic
import httpx2
from anthropic.lib.streaming import MessageStream

from shared.errors import AskfolderError, PermanentError, RefusedError, SlowDownError, TransientError
from shared.models import Waiting
from shared.providers.remote import SLOW_DOWN, is_loopback, retry_after

BEAT = 0.5  # seconds of silence after which a Waiting event comes
RETRYABLE = frozenset({408, 409, 429})
SLOW_DOWN_TYPES = frozenset({"overloaded_error", "rate_limit_error"})
RETRYABLE_TYPES = SLOW_DOWN_TYPES | {"api_error", "timeout_error"}


class Messages:
    """Anthropic's client for one key and address. Threads share it, and its connections."""

    def __init__(self, api_key: str, base_url: str) -> None:
        self._key, self._url = api_key, base_url

    @functools.cached_property
    def _client(self) -> anthropic.Anthropic:
        if not self._key.isascii() or any(map(str.isspace, self._key)):
            raise PermanentError("ANTHROPIC_API_KEY contains an invalid character or a space: copy the key again.")
        http = None
        if is_loopback(self._url):  # the SDK's own client reads the proxy settings even with trust_env=False
            limits = httpx2.Limits(max_connections=1000, max_keepalive_connections=0)
            tls = self._url.startswith("https:")  # loading certificates takes a while
            http = httpx2.Client(trust_env=False, verify=tls, follow_redirects=True, limits=limits)
        return anthropic.Anthropic(api_key=self._key, base_url=self._url, max_retries=0, http_client=http)

    def events(self, request: dict[str, Any], deadline: float) -> Generator[Any]:
        """Yield the SDK's events of one attempt, and Waiting in between. Raises TimeoutError at the deadline.

        A thread reads the stream, because the connection's timeouts apply to single reads only: a server that sends
        a byte now and then could keep the caller forever. Closing this generator ends the call.
        """
        events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        streams: list[MessageStream[None]] = []
        closed = threading.Event()
        client, left = self._client, deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError

        def read() -> None:
            try:
                timeout = httpx2.Timeout(left + 1, connect=min(left, 10.0))
                with client.messages.stream(**request, timeout=timeout) as stream:
                    streams.append(stream)
                    for event in stream:
                        if closed.is_set():
                            return
                        events.put(event)
                events.put(None)
            except Exception as error:
                events.put(error)

        threading.Thread(target=read, name="claude", daemon=True).start()
        try:
            while (left := deadline - time.monotonic()) > 0:
                try:
                    event = events.get(timeout=min(left, BEAT))
                except queue.Empty:
                    yield Waiting()
                    continue
                if event is None or isinstance(event, Exception):
                    streams.clear()  # the stream has ended by itself
                    if event is None:
                        return
                    raise event
                yield event
            raise TimeoutError
        finally:
            closed.set()
            for stream in streams:
                _hang_up(stream)

    def problem(self, error: Exception, model: str, model_setting: str) -> AskfolderError:
        """Translate an error of the SDK. The key is removed from the message, since a server might echo it."""
        if isinstance(error, AskfolderError):
            return error
        if isinstance(error, anthropic.APIStatusError):
            detail = (error.api_message or "").replace(self._key, "…")[:300].strip()
            return _refusal(error, model, model_setting, detail)
        if isinstance(error, anthropic.APITimeoutError | httpx2.TimeoutException):
            return TransientError("Claude could not be reached in time. Check the network connection.")
        if isinstance(error, anthropic.APIConnectionError):
            return TransientError(
                "There is no connection to Claude. Check the network connection, proxy settings and ANTHROPIC_BASE_URL."
            )
        if isinstance(error, httpx2.HTTPError):
            return TransientError("The connection to Claude was lost during an answer.")
        return TransientError(f"Claude's answer could not be read ({type(error).__name__}).")


def refuses_effort(error: Exception) -> bool:
    """True if the model does not know the parameter `effort` (Haiku 4.5 and older, models of other servers)."""
    return isinstance(error, anthropic.BadRequestError) and any(
        name in error.message for name in ("effort", "output_config")
    )


def _hang_up(stream: MessageStream[None]) -> None:
    """End a stream that another thread is reading: closing the socket would not wake that thread."""
    network = stream.response.extensions.get("network_stream")
    connection = network.get_extra_info("socket") if network else None
    if isinstance(connection, socket.socket):
        with contextlib.suppress(OSError):  # the connection is closed already
            connection.shutdown(socket.SHUT_RDWR)


def _refusal(error: anthropic.APIStatusError, model: str, model_setting: str, detail: str) -> AskfolderError:
    status, after = error.status_code, retry_after(error.response)
    transient = SlowDownError if status in SLOW_DOWN or error.type in SLOW_DOWN_TYPES else TransientError
    if status == 429 or error.type == "rate_limit_error":
        return transient(f"Claude's rate limit is reached. {detail}".strip(), after)
    if status == 529 or error.type == "overloaded_error":
        return transient("Claude is overloaded at the moment.", after)
    if status >= 500 or status in RETRYABLE or error.type in RETRYABLE_TYPES:
        return transient(f"Claude failed (HTTP {status}). {detail}".strip(), after)
    if status == 401 or error.type == "authentication_error":
        return PermanentError("Anthropic does not accept the key: check ANTHROPIC_API_KEY.")
    if status == 402 or error.type == "billing_error":
        return PermanentError(f"Anthropic asks for payment: check the account's credit. {detail}".strip())
    if status == 403 or error.type == "permission_error":
        return PermanentError(f"The key in ANTHROPIC_API_KEY may not use {model}: check its rights. {detail}".strip())
    if status == 404 or error.type == "not_found_error":
        return PermanentError(
            f"There is no model {model} at this address: check {model_setting} and ANTHROPIC_BASE_URL. {detail}".strip()
        )
    return RefusedError(f"Claude refused the request (HTTP {status}): {detail or 'no reason was given'}")
