"""The wall: documents are read in a child process with limits, so that no file can take a worker down.

The reading itself is `worker/parsing/child.py`, which only the child imports.
"""

import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn, Self

from shared.errors import TransientError, UnreadableError
from shared.models import Heading, Parsed
from shared.settings import Settings

log = logging.getLogger(__name__)

POLL_SECONDS = 0.05
REPLY_SPARE = 16 << 20  # bytes of a reply beside its text: 100,000 headings and 20,000 pages
NONSENSE = "its answer makes no sense"
ROOT = Path(__file__).resolve().parents[2]
# Documents are other people's: the child gets no keys and no database address.
CHILD_ENVIRONMENT = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONPATH")
# The child was ended from outside (shutdown, the kernel short of memory): the document is not to blame.
OUTSIDE_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class _Died(Exception):
    """The child ended before its reply was whole, or its reply is none."""


class _TooLong(Exception):
    """The child announces a reply that no document within the limits can have."""


class Parser:
    """Reads documents in one long-lived child process, which is replaced when a document misbehaves.

    `memory_bytes`: resident memory of the child. `seconds`: wall time for one document. One document at a time.
    """

    def __init__(
        self,
        *,
        memory_bytes: int = 1 << 30,
        seconds: float = 120,
        max_text_chars: int = 20_000_000,
        max_file_bytes: int = 200 << 20,
    ) -> None:
        self.memory_bytes = memory_bytes
        self.seconds = seconds
        self.max_text_chars = max_text_chars
        self.max_file_bytes = max_file_bytes
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._peak = 0
        self._lock = threading.Lock()

    @classmethod
    def of(cls, settings: Settings) -> Self:
        return cls(
            memory_bytes=settings.parse_memory_mb << 20,
            seconds=settings.parse_seconds,
            max_text_chars=settings.max_text_mb * 1_000_000,
            max_file_bytes=settings.max_file_mb << 20,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def parse(self, path: Path, name: str) -> Parsed:
        """Return the text and structure of the file at `path`; `name` is how messages call it.

        Raises UnreadableError when the file can never be read, TransientError when it may be later.
        """
        name = _printable(name)
        self._check_size(path, name)
        request = {
            "path": str(path.absolute()),
            "name": name,
            "max_text_chars": self.max_text_chars,
            "seconds": self.seconds,
        }
        with self._lock:
            try:
                reply = self._ask(request, name)
            except BaseException:
                # A reply that nobody waits for would be taken for the next document's.
                self._stop()
                raise
            if reply.get("error") == "memory" or self._resident() > self.memory_bytes // 2:
                self._stop()
        return _result(reply, name, self.memory_bytes)

    def close(self) -> None:
        """End the child; the next `parse` starts a new one."""
        with self._lock:
            self._stop()

    def _check_size(self, path: Path, name: str) -> None:
        try:
            size = path.stat().st_size
        except PermissionError as error:
            raise UnreadableError(_no_permission(name)) from error
        except OSError as error:
            raise TransientError(_vanished(name, error)) from error
        if size > self.max_file_bytes:
            raise UnreadableError(
                f"{name} is {size / (1 << 20):,.1f} MB large, the limit is {self.max_file_bytes / (1 << 20):,.1f} MB; "
                "split it, or raise ASKFOLDER_MAX_FILE_MB."
            )

    def _ask(self, request: dict[str, Any], name: str) -> dict[str, Any]:
        deadline = time.monotonic() + self.seconds
        try:
            # A second child is tried when the first was ended from outside, perhaps even before this document.
            return self._exchange(request, deadline) or self._exchange(request, deadline) or _interrupted(name)
        except TimeoutError as error:
            raise UnreadableError(
                f"{name} took longer than {self.seconds:g} s to read; it was given up. "
                "Split it, or raise ASKFOLDER_PARSE_SECONDS."
            ) from error
        except MemoryError as error:
            raise UnreadableError(_too_much_memory(name, self.memory_bytes)) from error
        except _TooLong as error:
            raise UnreadableError(
                f"{name} made its reader answer with {error}, far more than its text may take; it was given up. "
                "Split it, or raise ASKFOLDER_MAX_TEXT_MB."
            ) from error
        except _Died as error:
            raise UnreadableError(_crashed(name, str(error))) from error

    def _exchange(self, request: dict[str, Any], deadline: float) -> dict[str, Any] | None:
        """Send a request and return the reply, None if the child was ended from outside."""
        child = self._running()
        self._peak = 0
        try:
            _send(child, request)
            received = self._receive(child, deadline)
        except (_Died, BrokenPipeError) as error:
            try:
                code = child.wait(POLL_SECONDS * 20)
            except subprocess.TimeoutExpired:
                raise _Died("it closed its pipe") from error
            self._stop()
            if -code == signal.SIGXCPU:
                raise TimeoutError from error
            if isinstance(error, BrokenPipeError) or -code in OUTSIDE_SIGNALS:
                return None
            if -code == signal.SIGABRT and self._peak > self.memory_bytes // 2:
                raise MemoryError from error  # how libraries end that are refused more memory
            raise _Died(_exit_reason(code)) from error
        try:
            reply = json.loads(received)
        except (ValueError, RecursionError) as error:
            raise _Died(NONSENSE) from error
        if not isinstance(reply, dict):
            raise _Died(NONSENSE)
        return reply

    def _receive(self, child: subprocess.Popen[bytes], deadline: float) -> bytearray:
        length = int.from_bytes(self._read_exactly(child, 8, deadline), "big")
        # In JSON a character takes up to six bytes, and it may stand in the text and in a heading.
        if length > 12 * self.max_text_chars + REPLY_SPARE:
            raise _TooLong(f"{length / 1e6:,.0f} MB")
        return self._read_exactly(child, length, deadline)

    def _read_exactly(self, child: subprocess.Popen[bytes], count: int, deadline: float) -> bytearray:
        assert child.stdout is not None
        descriptor = child.stdout.fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        received = bytearray()
        pause = POLL_SECONDS
        look = time.monotonic() + pause
        while len(received) < count:
            if poll.poll(pause * 1000):
                part = os.read(descriptor, min(count - len(received), 1 << 20))
                if not part:
                    raise _Died
                received += part
            # Also while it answers: a reply that trickles in must not hold the worker.
            if (now := time.monotonic()) >= look:
                self._peak = max(self._peak, self._resident())
                if self._peak > self.memory_bytes * 0.96:  # what it takes until it is ended counts too
                    raise MemoryError
                pause = POLL_SECONDS / 10 if self._peak > self.memory_bytes // 2 else POLL_SECONDS
                look = now + pause
                if now > deadline:
                    raise TimeoutError
        return received

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is not None and (self._owner != os.getpid() or self._child.poll() is not None):
            self._stop()
        if self._child is None:
            self._owner = os.getpid()
            self._child = subprocess.Popen(
                [sys.executable, "-m", "worker.parsing.child", str(self.memory_bytes), str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                cwd=ROOT,
                env={key: os.environ[key] for key in CHILD_ENVIRONMENT if key in os.environ} | {"PYTHONUTF8": "1"},
                start_new_session=True,
            )
        return self._child

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.close()
        child.stdout.close()
        if self._owner != os.getpid():  # inherited over a fork: it is the parent's, and not ours to end or wait for
            child.returncode = 0
            return
        # What it started lives in its group, also when the child itself has ended. macOS refuses a group of the dead.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()

    def _resident(self) -> int:
        """Bytes of memory that the child holds, 0 where that cannot be told."""
        if self._child is None:
            return 0
        try:
            if sys.platform == "linux":
                return int(Path(f"/proc/{self._child.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
            answer = subprocess.run(
                ["ps", "-o", "rss=", "-p", str(self._child.pid)], capture_output=True, text=True, check=False
            )
            return int(answer.stdout.strip() or 0) * 1024
        except (OSError, ValueError, IndexError):
            return 0


def _interrupted(name: str) -> NoReturn:
    raise TransientError(f"Reading {name} was interrupted from outside twice; it is tried again later.")


def _send(child: subprocess.Popen[bytes], request: dict[str, Any]) -> None:
    assert child.stdin is not None
    message = json.dumps(request).encode("ascii")
    child.stdin.write(len(message).to_bytes(8, "big") + message)


def _result(reply: dict[str, Any], name: str, memory_bytes: int) -> Parsed:
    if reply.get("detail"):
        log.info("reading %s failed: %s", name, reply["detail"])
    match reply.get("error"):
        case None:
            try:
                return Parsed(
                    text=reply["text"],
                    format=reply["format"],
                    kind=reply["kind"],
                    title=reply["title"],
                    headings=tuple(Heading(*heading) for heading in reply["headings"]),
                    pages=tuple((start, number) for start, number in reply["pages"]),
                    metadata=dict(reply["metadata"]),
                    dated=datetime.fromisoformat(reply["dated"]) if reply["dated"] else None,
                )
            except (KeyError, TypeError, ValueError) as error:
                raise UnreadableError(_crashed(name, NONSENSE)) from error
        case "unreadable":
            raise UnreadableError(reply["message"])
        case "permission":
            raise UnreadableError(_no_permission(name))
        case "memory":
            raise UnreadableError(_too_much_memory(name, memory_bytes))
        case _:
            raise TransientError(_vanished(name, reply.get("message")))


def _printable(name: str) -> str:
    """A name that stands on one line and that PostgreSQL accepts."""
    name = name.encode("utf-8", "replace").decode("utf-8")
    return "".join(character if character.isprintable() else "\ufffd" for character in name)


def _no_permission(name: str) -> str:
    return f"{name} may not be opened by the user that askfolder runs as; give that user read permission (chmod +r)."


def _vanished(name: str, reason: object) -> str:
    return f"{name} could not be opened or went away while it was read ({reason}); it is looked for again later."


def _crashed(name: str, how: str) -> str:
    return (
        f"{name} made its reader crash ({how}); open it in the program that made it, save it again and drop it again."
    )


def _too_much_memory(name: str, memory_bytes: int) -> str:
    return (
        f"{name} needs more than {memory_bytes / (1 << 20):,.0f} MB of memory to read; it was given up. "
        "Split it, or raise ASKFOLDER_PARSE_MEMORY_MB."
    )


def _exit_reason(code: int) -> str:
    try:
        return signal.Signals(-code).name if code < 0 else f"exit {code}"
    except ValueError:
        return f"signal {-code}"
