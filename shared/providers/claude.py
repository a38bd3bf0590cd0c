"""Claude: Anthropic's Messages API, or a server that speaks it, with retries, pace and billing."""

import contextlib
import json
import random
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from shared.errors import AskfolderError, SlowDownError, TransientError
from shared.models import Waiting
from shared.providers.meter import UNMETERED, Call, Meter, Purpose, Tokens
from shared.providers.pace import Pace
from shared.settings import Settings
from shared.text.tokens import estimate_tokens

URL = "https://api.anthropic.com"
PAUSE = 0.5  # seconds before the second attempt; doubled for each further one
LONGEST_PAUSE = 8.0
BEAT = 0.5  # seconds between two Waiting events during a pause

T = TypeVar("T")
Content = str | list[dict[str, Any]]  # of a message: text, or blocks
Read = Callable[[Iterator[Any]], Iterator[T]]  # events of the SDK, with Waiting among them → items


@dataclass(frozen=True, slots=True)
class Use:
    """Rules of a purpose. The settings are named in error messages.

    `urgent`: a person waits; else the requests keep a distance from others while the server is overloaded.
    """

    model_setting: str
    seconds_setting: str = ""
    attempts: int = 4
    urgent: bool = True


USES: Mapping[Purpose, Use] = {
    "answers": Use("ANTHROPIC_MODEL", "ASKFOLDER_ASK_SECONDS"),
    "checking": Use("ASKFOLDER_CHECK_MODEL", "ASKFOLDER_ASK_SECONDS", attempts=1),
    "rewriting": Use("ASKFOLDER_REWRITE_MODEL", attempts=1),
    "reranking": Use("ASKFOLDER_RERANKER_MODEL", "ASKFOLDER_RERANK_SECONDS", attempts=1),
    "context": Use("ASKFOLDER_CONTEXT_MODEL", urgent=False),
    "judging": Use("--judge", urgent=False),
}


@dataclass(frozen=True, slots=True)
class Deadline:
    """The end of a time limit. `at`: on the clock of `time.monotonic`; `seconds`: the whole limit."""

    at: float
    seconds: float

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        return cls(time.monotonic() + seconds, seconds)

    def left(self) -> float:
        return self.at - time.monotonic()


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete answer. `tokens`: of all attempts."""

    text: str
    tokens: Tokens
    stop_reason: str


class Claude:
    """One key and address, with the pace and the meter of its requests. Threads share it.

    `citing`: for servers other than Anthropic's, model → True if it gives citations, once that is known.
    """

    def __init__(self, api_key: str, base_url: str = "", meter: Meter = UNMETERED) -> None:
        """`base_url`: "" for Anthropic's own address."""
        # The SDK takes two seconds to import: only a process that uses Claude waits for it.
        from shared.providers.messages import Messages, refuses_effort

        self.meter, self.url = meter, base_url or URL
        self.citing: dict[str, bool] = {}
        self._messages, self._refuses_effort = Messages(api_key, self.url), refuses_effort
        self._paces: dict[str, Pace] = {}
        self._without_effort: set[str] = set()  # models that refused the parameter

    @classmethod
    def of(cls, settings: Settings, meter: Meter = UNMETERED) -> "Claude | None":
        """Claude as the settings describe it. None if there is no key."""
        key = settings.anthropic_api_key
        return cls(key.get_secret_value(), settings.anthropic_base_url, meter) if key else None

    def gives_citations(self, model: str) -> bool | None:
        """True if answers cite search results. None if that is not known of the server's model yet."""
        host = urlsplit(self.url).hostname or ""
        return True if f".{host}".endswith(".anthropic.com") else self.citing.get(model)

    def complete(
        self, purpose: Purpose, model: str, system: str, content: Content, max_tokens: int, seconds: float
    ) -> Reply:
        """Wait for the complete answer to one message. Raises as `stream` does."""
        request = {"max_tokens": max_tokens, "system": system, "messages": [{"role": "user", "content": content}]}
        parts: Iterator[Any] = self.stream(purpose, model, request, _message, Deadline.after(seconds))
        *_, message, tokens = parts
        text = "".join(block.text for block in message.content if block.type == "text")
        return Reply(text, tokens, message.stop_reason)

    def stream(
        self, purpose: Purpose, model: str, request: Mapping[str, Any], read: Read[T], deadline: Deadline
    ) -> Generator[T | Waiting | Tokens]:
        """Send a request. Yields the items of `read`, Waiting while nothing comes, and last the tokens of all attempts.

        The request is reserved with the meter first, and each attempt is billed. A failed attempt is repeated only if
        no item but Waiting was yielded. Closing the generator ends the call. BudgetError: the day's cap does not allow
        the request. TransientError: no answer came before the deadline, or the server asks for a longer pause.
        RefusedError: the server refuses this request. Other PermanentErrors: it refuses the key or the model.
        """
        use, pace = USES[purpose], self._pace(model)
        request = {"model": model, **request}
        with self.meter.call(purpose, model, reservation(request), max(deadline.left(), 0.0)) as call:
            for attempt in count(1):
                slowed = yield from _wait_for_turn(pace, deadline, use.urgent)
                effort = {} if model in self._without_effort else {"output_config": {"effort": "low"}}
                started = False
                try:
                    with contextlib.closing(self._billed(call, request | effort, deadline)) as events:
                        for item in read(events):
                            if not started and not isinstance(item, Waiting):
                                started = True
                                if slowed:
                                    pace.went_well()
                            yield item
                    break
                except Exception as error:  # the SDK raises many types when a stream breaks
                    if effort and self._refuses_effort(error):
                        self._without_effort.add(model)
                        continue
                    problem = self._problem(error, model, use, deadline)
                if isinstance(problem, SlowDownError):
                    pace.slow(problem.retry_after)
                if started or not isinstance(problem, TransientError) or attempt >= use.attempts:
                    raise problem
                yield from _pause(attempt, problem, deadline)
        yield call.took

    def _billed(self, call: Call, request: dict[str, Any], deadline: Deadline) -> Generator[Any]:
        """Yield the events of one attempt. Its tokens are billed when it ends, breaks off or is closed.

        The output of a stream that broke off is estimated: three letters a token. If no event came before the deadline,
        the server may have read the input: it is billed as it was reserved.
        """
        if call.calls:
            call.renew()
        tokens: Tokens | None = None
        written, final = 0, False
        events = self._messages.events(request, deadline.at)
        try:
            for event in events:
                kind = getattr(event, "type", None)  # None: Waiting
                if kind == "message_start":
                    tokens = Tokens.of(event.message.usage)
                elif kind == "content_block_delta":
                    written += len(getattr(event.delta, "text", None) or getattr(event.delta, "thinking", None) or "")
                elif kind == "message_delta" and tokens is not None:
                    tokens, final = replace(tokens, output=event.usage.output_tokens or 0), True
                yield event
        except TimeoutError:
            tokens = tokens or Tokens(call.most.input)
            raise
        finally:
            if tokens is not None:
                call.billed(tokens if final else replace(tokens, output=max(tokens.output, written // 3)))
            events.close()

    def _problem(self, error: Exception, model: str, use: Use, deadline: Deadline) -> AskfolderError:
        if isinstance(error, TimeoutError):
            setting = f" ({use.seconds_setting})" if use.seconds_setting else ""
            return TransientError(f"Claude did not answer within {round(deadline.seconds, 1):g} s{setting}.")
        return self._messages.problem(error, model, use.model_setting)

    def _pace(self, model: str) -> Pace:
        if model not in self._paces:
            self._paces[model] = Pace(self.meter.redis_url, "Claude", self.url, model)
        return self._paces[model]


def reservation(request: Mapping[str, Any]) -> Tokens:
    """Estimate from above what a request may take. Content that is marked for the cache counts as written to it."""
    if "tools" in request:  # the definitions of tools, and the ids and signatures of earlier replies, are tokens too
        body = json.dumps({name: value for name, value in request.items() if name != "model"}, ensure_ascii=False)
        return Tokens(estimate_tokens(body), request["max_tokens"])
    content = request["messages"][-1]["content"]
    blocks = [{"text": content}] if isinstance(content, str) else content
    cached = [block for block in blocks if "cache_control" in block]
    plain = [request["system"], *(block for block in blocks if "cache_control" not in block)]
    return Tokens(_estimate(plain), request["max_tokens"], _estimate(cached))


def _estimate(blocks: list[Any]) -> int:
    return estimate_tokens("".join(_texts(blocks)))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for name in ("source", "title", "text", "content"):
            yield from _texts(value.get(name))


def _wait_for_turn(pace: Pace, deadline: Deadline, urgent: bool) -> Generator[Waiting, None, bool]:
    """Wait until a request may be sent. Return True if the server had asked to slow down."""
    while (nap := pace.turn(deadline.at, urgent)) > 0:
        yield Waiting()
        time.sleep(nap)
    return nap == 0


def _pause(attempt: int, problem: TransientError, deadline: Deadline) -> Generator[Waiting]:
    """Wait before the next attempt. Raises the problem if the deadline is sooner."""
    pause = min(PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE) * random.uniform(0.75, 1.25)
    until = time.monotonic() + max(pause, problem.retry_after or 0.0)
    if until >= deadline.at:
        raise problem
    while (left := until - time.monotonic()) > 0:
        yield Waiting()
        time.sleep(min(left, BEAT))


def _message(events: Iterator[Any]) -> Iterator[Any]:
    """Yield the complete message at the end of its stream."""
    message = None
    for event in events:
        if getattr(event, "type", None) == "message_stop":
            message = event.message
    check_end(message.stop_reason if message else None)
    yield message


def check_end(stop_reason: str | None) -> None:
    """Raise TransientError if the stream ended too early: the SDK reports that as an end without a stop reason."""
    if stop_reason is None:
        raise TransientError("Claude's answer ended early.")
    if stop_reason in ("pause_turn", "tool_use"):
        raise TransientError(f"Claude stopped in the middle ({stop_reason}) and did not answer.")


def prompt(module: str, name: str) -> str:
    """Read a prompt from the file that stands beside a module. `module`: its `__file__`."""
    return Path(module).with_name(name).read_text("utf-8")
