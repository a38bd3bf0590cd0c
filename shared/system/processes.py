"""Start, restart and stop the processes of the Procfile."""

import contextlib
import logging.handlers
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from shared.settings import ROOT

STOP_SECONDS = 6.0  # then processes are killed; the servers are stopped after them


class Process:
    """A line of the Procfile, with its output in a rotated log file."""

    def __init__(self, name: str, command: str, env: dict[str, str], logs: Path) -> None:
        self.name = name
        self.command = [sys.executable if part == "python" else part for part in shlex.split(command)]
        self.env = env
        self.log = logs / f"{name}.log"
        self.popen: subprocess.Popen[bytes] | None = None
        self.starts = 0
        self.next_start = 0.0

    def start(self) -> None:
        self.starts += 1
        self.popen = subprocess.Popen(
            self.command,
            cwd=ROOT,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        threading.Thread(target=self._write_log, args=[self.popen], daemon=True).start()

    def ended(self) -> bool:
        return self.popen is not None and self.popen.poll() is not None

    def signal(self, number: int) -> None:
        if self.popen is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.popen.pid, number) if number == signal.SIGKILL else self.popen.send_signal(number)

    def last_lines(self) -> str:
        """The last three lines of the log."""
        lines = self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        return "\n".join(lines[-3:])

    def _write_log(self, popen: subprocess.Popen[bytes]) -> None:
        handler = logging.handlers.RotatingFileHandler(
            self.log, maxBytes=5_000_000, backupCount=2, encoding="utf-8", errors="replace"
        )
        # Lines that a full disk cannot take are lost; they do not go to the screen.
        handler.handleError = lambda record: None  # type: ignore[method-assign]
        with contextlib.closing(handler), popen.stdout or contextlib.nullcontext() as lines:
            for line in lines or ():
                text = line.decode("utf-8", "replace").rstrip("\n")
                handler.handle(logging.LogRecord(self.name, logging.INFO, "", 0, "%s", (text,), None))


def procfile() -> list[tuple[str, str]]:
    """Return name and command of each line."""
    lines = (ROOT / "Procfile").read_text().splitlines()
    return [(name, command.strip()) for name, _, command in (line.partition(":") for line in lines if line.strip())]


def restart_ended(processes: Sequence[Process]) -> None:
    """Start processes again that ended, each time after a longer pause."""
    now = time.monotonic()
    for process in processes:
        if process.ended() and now >= process.next_start:
            process.next_start = now + min(2**process.starts, 30)
            process.start()


def stop(processes: Sequence[Process]) -> None:
    for process in processes:
        process.signal(signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    for process in processes:
        if process.popen is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.popen.wait(max(0.0, deadline - time.monotonic()))
        process.signal(signal.SIGKILL)
