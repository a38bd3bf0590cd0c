"""Processes of the Procfile: start, restart and stop."""

import contextlib
import logging.handlers
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from shared.settings import ROOT

END_SECONDS = 6.0  # for the processes, before they are killed; the servers come after them


class Process:
    """A line of the Procfile: started again when it ends by itself, its output in a log file that is rotated."""

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

    def last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        return "\n".join(lines[-3:])

    def _write_log(self, popen: subprocess.Popen[bytes]) -> None:
        handler = logging.handlers.RotatingFileHandler(
            self.log, maxBytes=5_000_000, backupCount=2, encoding="utf-8", errors="replace"
        )
        handler.handleError = lambda record: None  # type: ignore[method-assign]  # a full disk loses log lines, not the screen
        with contextlib.closing(handler), popen.stdout or contextlib.nullcontext() as lines:
            for line in lines or ():
                text = line.decode("utf-8", "replace").rstrip("\n")
                handler.handle(logging.LogRecord(self.name, logging.INFO, "", 0, "%s", (text,), None))


def procfile() -> list[tuple[str, str]]:
    lines = (ROOT / "Procfile").read_text().splitlines()
    return [(name, command.strip()) for name, _, command in (line.partition(":") for line in lines if line.strip())]


def revive(processes: list[Process]) -> None:
    now = time.monotonic()
    for process in processes:
        if process.ended() and now >= process.next_start:
            process.next_start = now + min(2**process.starts, 30)
            process.start()


def end_process(processes: list[Process]) -> None:
    for process in processes:
        process.signal(signal.SIGTERM)
    deadline = time.monotonic() + END_SECONDS
    for process in processes:
        if process.popen is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.popen.wait(max(0.0, deadline - time.monotonic()))
        process.signal(signal.SIGKILL)
