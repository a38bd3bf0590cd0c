"""Parse documents in a child process with limits, so that no file can crash a worker.

`worker/parsing/child.py`, which runs in the child, imports the parsers.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import psutil

from shared.errors import TransientError, UnreadableError
from shared.log import log
from shared.models import Heading, Parsed
from shared.settings import Settings
from shared.text.printable import printable

POLL_SECONDS = 0.05
REPLY_SPARE = 16 << 20  # bytes of a reply besides its text: 100,000 headings and 20,000 pages
INVALID = "its answer is invalid"
ROOT = Path(__file__).resolve().parents[2]
# Documents are untrusted: the child gets no keys and no database address.
CHILD_ENVIRONMENT = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONPATH")
# Signals sent from outside (shutdown, out of memory); never the document's fault.
OUTSIDE_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


_NO_PERMISSION = "{} may not be opened by the user that askfolder runs as; give that user read permission (chmod +r)."
_VANISHED = "{} could not be opened or disappeared while it was read ({}); it is tried again later."
_CRASHED = "{} crashed the parser ({}); open it in the program that made it, save it again and drop it again."


class _Died(Exception):
    """The child ended before its reply was complete, or the reply is invalid."""


class Parser:
    """Parses one document at a time in a long-lived child process, which is replaced after a crash or a timeout.

    `memory_bytes`: resident memory of the child. `seconds`: wall time for one document. `child`: the process, if any.
    `peak_bytes`: the highest resident memory seen during the last document.
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
        self.child: subprocess.Popen[bytes] | None = None
        self.peak_bytes = 0
        self._owner = 0
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
        """Return the text and structure of the file at `path`; messages call it `name`.

        Raises UnreadableError if the file cannot be read, TransientError if a retry may help.
        """
        name = printable(name, keep="")  # one line, and text that PostgreSQL accepts
        self._check_size(path, name)
        request = {
            "path": str(path.absolute()),
            "name": name,
            "max_text_chars": self.max_text_chars,
            "seconds": self.seconds,
        }
        with self._lock:
            try:
                reply = self._ask(request)
            except BaseException:
                # A late reply would be taken for the next document's.
                self._stop()
                raise
            if reply.get("error") == "memory" or self.resident_bytes() > self.memory_bytes // 2:
                self._stop()
        return self._result(reply, name)

    def _result(self, reply: dict[str, Any], name: str) -> Parsed:
        if detail := reply.get("detail"):
            log.info(f"Parsing {name} failed: {detail}", action="parse.failed")
        match reply.get("error"):
            case None:
                try:
                    headings = tuple(Heading(*heading) for heading in reply["headings"])
                    pages = tuple((start, number) for start, number in reply["pages"])
                    dated = datetime.fromisoformat(reply["dated"]) if reply["dated"] else None
                    return Parsed(
                        **reply
                        | {"headings": headings, "pages": pages, "metadata": dict(reply["metadata"]), "dated": dated}
                    )
                except (KeyError, TypeError, ValueError) as error:
                    raise UnreadableError(_CRASHED.format(name, INVALID)) from error
            case "unreadable":
                raise UnreadableError(reply["message"])
            case "permission":
                raise UnreadableError(_NO_PERMISSION.format(name))
            case "memory":
                raise self._too_much_memory(name)
            case _:
                raise TransientError(_VANISHED.format(name, reply.get("message")))

    def _too_much_memory(self, name: str) -> UnreadableError:
        return UnreadableError(
            f"{name} needs more than {self.memory_bytes / (1 << 20):,.0f} MB of memory to read; reading was stopped. "
            "Split it, or raise ASKFOLDER_PARSE_MEMORY_MB."
        )

    def close(self) -> None:
        """End the child; the next `parse` starts a new one."""
        with self._lock:
            self._stop()

    def _check_size(self, path: Path, name: str) -> None:
        try:
            size = path.stat().st_size
        except PermissionError as error:
            raise UnreadableError(_NO_PERMISSION.format(name)) from error
        except OSError as error:
            raise TransientError(_VANISHED.format(name, error)) from error
        if size > self.max_file_bytes:
            raise UnreadableError(
                f"{name} is {size / (1 << 20):,.1f} MB large, the limit is {self.max_file_bytes / (1 << 20):,.1f} MB; "
                "split it, or raise ASKFOLDER_MAX_FILE_MB."
            )

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        name, deadline = request["name"], time.monotonic() + self.seconds
        try:
            # The first child may have been ended from outside, even before this document.
            if reply := self._exchange(request, deadline) or self._exchange(request, deadline):
                return reply
            raise TransientError(f"Parsing {name} was interrupted from outside twice; it is tried again later.")
        except TimeoutError as error:
            raise UnreadableError(
                f"{name} took longer than {self.seconds:g} s to read; reading was stopped. "
                "Split it, or raise ASKFOLDER_PARSE_SECONDS."
            ) from error
        except MemoryError as error:
            raise self._too_much_memory(name) from error
        except _Died as error:
            raise UnreadableError(_CRASHED.format(name, error)) from error

    def _exchange(self, request: dict[str, Any], deadline: float) -> dict[str, Any] | None:
        """Send a request and return the reply, None if the child was ended from outside."""
        child = self.start()
        self.peak_bytes = 0
        try:
            assert child.stdin is not None
            message = json.dumps(request).encode("ascii")
            child.stdin.write(len(message).to_bytes(8, "big") + message)
            received = self._receive(child, request["name"], deadline)
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
            if -code == signal.SIGABRT and self.peak_bytes > self.memory_bytes // 2:
                raise MemoryError from error  # libraries abort when they get no memory
            raise _Died(_exit_reason(code)) from error
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(reply := json.loads(received), dict):
                return reply
        raise _Died(INVALID)

    def _receive(self, child: subprocess.Popen[bytes], name: str, deadline: float) -> bytearray:
        length = int.from_bytes(self._read_exactly(child, 8, deadline), "big")
        # In JSON a character takes up to six bytes, and it may stand in the text and in a heading.
        if length > 12 * self.max_text_chars + REPLY_SPARE:
            raise UnreadableError(
                f"{name} made the parser answer with {length / 1e6:,.0f} MB, far more than its text may take; "
                "reading was stopped. Split it, or raise ASKFOLDER_MAX_TEXT_MB."
            )
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
            # Also during the reply: a slow one must not block the worker.
            if (now := time.monotonic()) >= look:
                self.peak_bytes = max(self.peak_bytes, self.resident_bytes())
                if self.peak_bytes > self.memory_bytes * 0.96:  # it grows until it is killed
                    raise MemoryError
                pause = POLL_SECONDS / 10 if self.peak_bytes > self.memory_bytes // 2 else POLL_SECONDS
                look = now + pause
                if now > deadline:
                    raise TimeoutError
        return received

    def start(self) -> subprocess.Popen[bytes]:
        """Return the child of this process; start one if there is none."""
        if self.child is not None and (self._owner != os.getpid() or self.child.poll() is not None):
            self._stop()
        if self.child is None:
            self._owner = os.getpid()
            self.child = subprocess.Popen(
                [sys.executable, "-m", "worker.parsing.child", str(self.memory_bytes), str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                cwd=ROOT,
                env={key: os.environ[key] for key in CHILD_ENVIRONMENT if key in os.environ} | {"PYTHONUTF8": "1"},
                start_new_session=True,
            )
        return self.child

    def _stop(self) -> None:
        child, self.child = self.child, None
        if child is None:
            return
        for pipe in filter(None, (child.stdin, child.stdout)):
            pipe.close()
        if self._owner != os.getpid():  # inherited by a fork: only the parent may kill it and wait for it
            child.returncode = 0
            return
        # The group has the processes that the child started, also after its end. macOS refuses a group of dead ones.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()

    def resident_bytes(self) -> int:
        """Return the child's resident memory in bytes, 0 if it is unknown."""
        with contextlib.suppress(psutil.Error):
            return int(psutil.Process(self.child.pid).memory_info().rss) if self.child else 0
        return 0


def _exit_reason(code: int) -> str:
    try:
        return signal.Signals(-code).name if code < 0 else f"exit {code}"
    except ValueError:
        return f"signal {-code}"
