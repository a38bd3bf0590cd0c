"""What is written after the fact, so that nobody waits for it: in a thread of its own, or at once where nobody does."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from shared.log import log

AGAIN_SECONDS = 2.0  # until what could not be written is tried again
T = TypeVar("T")


class Writer(Generic[T]):
    """Things to be written, in their order. Threads share it."""

    def __init__(self, name: str, write: Callable[[list[T]], list[T]]) -> None:
        """`write`: takes what is pending, and returns what is to be tried again. `name`: of the thread."""
        self._name, self._write = name, write
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._pending: list[T] = []
        self._filled = threading.Event()
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, thing: T, start: bool = True) -> None:
        """`start`: a thread writes it soon; else whoever calls `write`."""
        with self._lock:
            self._pending.append(thing)
            if start and self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
        self._filled.set()

    def write(self) -> bool:
        """Writes what is pending, after what is being written now. Returns whether nothing is left."""
        with self._writing:
            with self._lock:
                pending, self._pending = self._pending, []
            left = self._write(pending) if pending else []
            with self._lock:
                self._pending = left + self._pending
                return not self._pending

    def _run(self) -> None:
        while True:
            self._filled.wait()
            self._filled.clear()
            try:
                done = self.write()
            except Exception as error:  # the thread is to outlive what nobody foresaw
                log.error("Something could not be written", action=f"{self._name}.not_written", exc_info=error)
                continue
            if not done:
                threading.Event().wait(AGAIN_SECONDS)
                self._filled.set()
