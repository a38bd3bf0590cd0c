"""One request to Anthropic's Messages API, or to a server that speaks it: the whole message that answers it, or what comes of it bit by bit."""

import contextlib
import functools
import queue
import random
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from itertools import count
from typing import Any, TypeVar

import anthropic
import httpx2
from anthropic.lib.streaming import MessageStream
from anthropic.types import Message

from shared.errors import AskfolderError, PermanentError, TransientError
from shared.providers.meter import Call
from shared.providers.pace import Pace
from shared.providers.remote import SLOW_DOWN, is_loopback, retry_after

URL = "https://api.anthropic.com"
ATTEMPTS = 4
PAUSE = 0.5  # seconds before the second attempt; doubled for each further one
LONGEST_PAUSE = 8.0
BEAT = 0.5  # seconds of silence after which whoever waits is told that it goes on
PASSING = frozenset({408, 409, 429})
SLOW_DOWN_TYPES = frozenset({"overloaded_error", "rate_limit_error"})
PASSING_TYPES = SLOW_DOWN_TYPES | {"api_error", "timeout_error"}

T = TypeVar("T")

_without_effort: set[str] = set()  # models that refused the parameter


class RefusedError(PermanentError):
    """The server takes the key and knows the model, but not this request."""


def complete(
    request: dict[str, Any],
    *,
    api_key: str,
    base_url: str,
    seconds: float,
    attempts: int = ATTEMPTS,
    model_setting: str = "ANTHROPIC_MODEL",
    seconds_setting: str = "ASKFOLDER_ASK_SECONDS",
    call: Call | None = None,
    urgent: bool = True,
) -> Message:
    """The whole message that answers a request.

    `base_url`: empty for Anthropic's own. `seconds`: from now, for everything, retries and silence included. The settings are
    those that an error's sentence names. `call`: is billed each attempt, and names the Redis where processes share the pace.
    `urgent`: somebody waits; else it keeps its distance from others while the server has much to do. TransientError: it did not come
    about in time, or the server wants to be left alone for longer; PermanentError: the request was refused and would be again.
    """
    found = stream(
        request,
        _whole,
        api_key=api_key,
        base_url=base_url,
        deadline=time.monotonic() + seconds,
        seconds=seconds,
        attempts=attempts,
        model_setting=model_setting,
        seconds_setting=seconds_setting,
        call=call,
        urgent=urgent,
    )
    return next(message for message in found if message is not None)


def stream(
    request: dict[str, Any],
    read: Callable[[Iterator[Any]], Iterator[T | None]],
    *,
    api_key: str,
    base_url: str,
    deadline: float,
    seconds: float,
    attempts: int = ATTEMPTS,
    model_setting: str = "ANTHROPIC_MODEL",
    seconds_setting: str = "ASKFOLDER_ASK_SECONDS",
    call: Call | None = None,
    urgent: bool = True,
) -> Iterator[T | None]:
    """What `read` makes of the events; None: nothing for a while. The only layer that retries, and only where nothing was given yet.

    Errors as in `complete`; RefusedError where the server refuses this request.
    """
    client, call = _client(api_key, base_url or URL), call or Call()
    pace = _pace(call.redis_url, base_url or URL, request["model"])
    for attempt in count(1):
        while (nap := pace.turn(deadline, urgent)) > 0:
            yield None
            time.sleep(nap)
        effort = {} if request["model"] in _without_effort else {"output_config": {"effort": "low"}}
        given = False
        try:
            with contextlib.closing(call.watched(_events(client, request | effort, deadline))) as events:
                for item in read(events):
                    if item is not None and not given:
                        given = True
                        if nap == 0:
                            pace.went_well()
                    yield item
            return
        except TimeoutError:
            raise TransientError(
                f"Claude did not answer within {round(seconds, 1):g} s{f' ({seconds_setting})' if seconds_setting else ''}."
            ) from None
        except Exception as error:  # whatever the SDK makes of a broken stream
            if effort and _refuses_effort(error):
                _without_effort.add(request["model"])
                continue
            problem = _problem(error, request["model"], model_setting, api_key)
            if isinstance(error, anthropic.APIStatusError) and (
                error.status_code in SLOW_DOWN or error.type in SLOW_DOWN_TYPES
            ):
                pace.slow(retry_after(error.response))
        if given or not isinstance(problem, TransientError) or attempt >= attempts:
            raise problem
        pause = min(PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE) * random.uniform(0.75, 1.25)
        until = time.monotonic() + max(pause, problem.retry_after or 0.0)
        if until >= deadline:
            raise problem
        while (left := until - time.monotonic()) > 0:
            yield None
            time.sleep(min(left, BEAT))


def text(message: Message) -> str:
    """What a message says, without what was thought before it."""
    return "".join(block.text for block in message.content if block.type == "text")


def usage(message: Message) -> dict[str, int]:
    """The tokens that a message took; `input_tokens` are those that were neither written to the cache nor read from it."""
    spent = message.usage
    return {
        "input_tokens": spent.input_tokens or 0,
        "output_tokens": spent.output_tokens or 0,
        "cache_creation_input_tokens": spent.cache_creation_input_tokens or 0,
        "cache_read_input_tokens": spent.cache_read_input_tokens or 0,
    }


@functools.lru_cache(maxsize=4)
def _client(api_key: str, base_url: str) -> anthropic.Anthropic:
    """One client, and so one pool of connections, for each key and address."""
    if not api_key.isascii() or any(map(str.isspace, api_key)):
        raise PermanentError("ANTHROPIC_API_KEY holds a space or a letter that no key has: copy it again.")
    http = None
    if is_loopback(base_url):  # the SDK's own client reads the proxy settings even with trust_env=False
        limits = httpx2.Limits(max_connections=1000, max_keepalive_connections=0)
        tls = base_url.startswith("https:")  # loading certificates takes a while
        http = httpx2.Client(trust_env=False, verify=tls, follow_redirects=True, limits=limits)
    return anthropic.Anthropic(api_key=api_key, base_url=base_url, max_retries=0, http_client=http)


@functools.lru_cache(maxsize=16)
def _pace(redis_url: str, base_url: str, model: str) -> Pace:
    return Pace(redis_url, "Claude", base_url, model)


def _events(client: anthropic.Anthropic, request: dict[str, Any], deadline: float) -> Generator[Any]:
    """The events of one attempt, None where none came for a while; TimeoutError at the deadline, whatever the other side does.

    A thread reads: timeouts of the connection hold for single reads only, so a server that sends a byte now and then
    could keep us forever. Closing this generator ends the call.
    """
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    streams: list[MessageStream[None]] = []
    done = threading.Event()
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError

    def read() -> None:
        try:
            timeout = httpx2.Timeout(left + 1, connect=min(left, 10.0))
            with client.messages.stream(**request, timeout=timeout) as stream:
                streams.append(stream)
                for event in stream:
                    if done.is_set():
                        return
                    events.put(event)
            events.put(None)
        except Exception as error:
            events.put(error)

    threading.Thread(target=read, name="claude", daemon=True).start()
    try:
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            try:
                event = events.get(timeout=min(left, BEAT))
            except queue.Empty:
                yield None
                continue
            if event is None or isinstance(event, Exception):
                streams.clear()  # it ended by itself
                if event is None:
                    return
                raise event
            yield event
    finally:
        done.set()
        for stream in streams:
            _hang_up(stream)


def _hang_up(stream: MessageStream[None]) -> None:
    """End a stream that another thread is reading: closing the socket would not wake it."""
    network = stream.response.extensions.get("network_stream")
    connection = network.get_extra_info("socket") if network else None
    if isinstance(connection, socket.socket):
        with contextlib.suppress(OSError):  # it is gone already
            connection.shutdown(socket.SHUT_RDWR)


def _whole(events: Iterator[Any]) -> Iterator[Message]:
    """The message when its stream came to its end."""
    message: Message | None = None
    for event in events:
        if event is not None and event.type == "message_stop":
            message = event.message
    check_end(message.stop_reason if message else None)
    assert message is not None
    yield message


def check_end(stop_reason: str | None) -> None:
    """Raises TransientError for what is no end; the SDK reports a stream that was cut as a silent one."""
    if stop_reason is None:
        raise TransientError("Claude's answer broke off before its end.")
    if stop_reason in ("pause_turn", "tool_use"):
        raise TransientError(f"Claude stopped in the middle ({stop_reason}) and did not answer.")


def _refuses_effort(error: Exception) -> bool:
    """Whether a model does not know `effort` (Haiku 4.5 and older, other servers' models)."""
    return isinstance(error, anthropic.BadRequestError) and any(
        name in error.message for name in ("effort", "output_config")
    )


def _problem(error: Exception, model: str, model_setting: str, api_key: str) -> AskfolderError:
    """What an error means for the person who asked; never with the key, which a server might echo."""
    if isinstance(error, AskfolderError):
        return error
    if isinstance(error, anthropic.APIStatusError):
        return _refusal(error, model, model_setting, (error.api_message or "").replace(api_key, "…")[:300].strip())
    if isinstance(error, anthropic.APITimeoutError | httpx2.TimeoutException):
        return TransientError("Claude could not be reached in time. Check the network connection.")
    if isinstance(error, anthropic.APIConnectionError):
        return TransientError(
            "There is no connection to Claude. Check the network connection, proxy settings and ANTHROPIC_BASE_URL."
        )
    if isinstance(error, httpx2.HTTPError):
        return TransientError("The connection to Claude broke in the middle of an answer.")
    return TransientError(f"Claude's answer could not be read ({type(error).__name__}).")


def _refusal(error: anthropic.APIStatusError, model: str, model_setting: str, said: str) -> AskfolderError:
    status = error.status_code
    if status == 429 or error.type == "rate_limit_error":
        return TransientError(f"Claude's rate limit is reached. {said}".strip(), retry_after(error.response))
    if status == 529 or error.type == "overloaded_error":
        return TransientError("Claude is overloaded at the moment.", retry_after(error.response))
    if status >= 500 or status in PASSING or error.type in PASSING_TYPES:
        return TransientError(f"Claude failed (HTTP {status}). {said}".strip(), retry_after(error.response))
    if status == 401 or error.type == "authentication_error":
        return PermanentError("Anthropic does not accept the key: check ANTHROPIC_API_KEY.")
    if status == 402 or error.type == "billing_error":
        return PermanentError(f"Anthropic asks for payment: check the account's credit. {said}".strip())
    if status == 403 or error.type == "permission_error":
        return PermanentError(f"The key in ANTHROPIC_API_KEY may not use {model}: check its rights. {said}".strip())
    if status == 404 or error.type == "not_found_error":
        return PermanentError(
            f"There is no model {model} at this address: check {model_setting} and ANTHROPIC_BASE_URL. {said}".strip()
        )
    return RefusedError(f"Claude refused the request (HTTP {status}): {said or 'no reason was given'}")
