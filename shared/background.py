"""Write records in a background thread, or when the caller asks for it."""

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from shared.log import log

RETRY_SECONDS = 2.0
T = TypeVar("T")


class Writer(Generic[T]):
    """A queue of records, written in order. Thread-safe. Its length is the number of pending records."""

    def __init__(self, name: str, write: Callable[[list[T]], list[T]]) -> None:
        """`write`: writes the records and returns those to retry. `name`: names the thread and the log action."""
        self._name, self._write = name, write
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._pending: list[T] = []
        self._filled = threading.Event()
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, record: T, start: bool = True) -> None:
        """Add a record. `start`: a thread writes it soon; otherwise the caller calls `write`."""
        with self._lock:
            self._pending.append(record)
            if start and self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
        self._filled.set()

    def write(self) -> bool:
        """Write the pending records, after a write in progress. Returns True if no record is left."""
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
                if not self.write():
                    time.sleep(RETRY_SECONDS)
                    self._filled.set()
            except Exception as error:  # an unexpected error must not end the thread
                log.error("Records could not be written", action=f"{self._name}.not_written", exc_info=error)
