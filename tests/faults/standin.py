"""The campaigns' embedder counts the payments for each text, has an adjustable delay, and stores no texts."""

import hashlib
import random
import threading
from collections import Counter
from typing import Any

from tests.standins.providers import OpenAIStandin

QUESTION = "Question:"  # the start of every question of the campaigns; other texts are documents
DIMENSIONS = 64


class CountingStandin(OpenAIStandin):
    """OpenAI's stand-in. `slow`: minimum and maximum seconds of an answer. Counted faults affect documents only."""

    def __init__(self, slow: tuple[float, float] = (0.0, 0.0)) -> None:
        self.slow = slow
        self.paid: Counter[bytes] = Counter()  # SHA-256 of a text → number of requests
        self.largest_batch = 0
        self.times: list[float] = []  # times of the requests for documents
        self._counting = threading.Lock()
        self._random = random.Random(7)
        super().__init__()
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that was killed is no news

    @property
    def delay(self) -> float:
        shortest, longest = self.slow
        return shortest + (longest - shortest) * self._random.random() ** 3

    @delay.setter
    def delay(self, seconds: float) -> None:
        """Ignore the base class's value, because `slow` sets the delay."""

    def record(self, path: str, headers: dict[str, str], body: Any) -> tuple[str, dict[str, Any]]:
        texts = body.get("input", []) if isinstance(body, dict) else []
        if all(text.startswith(QUESTION) for text in texts):
            return self._always or ("", {})
        fault = super().record(path, {}, None)
        with self._counting:
            self.paid.update(hashlib.sha256(text.encode()).digest() for text in texts)
            self.largest_batch = max(self.largest_batch, len(texts))
            self.times.append(self.requests[-1]["time"])
        return fault

    def forget(self) -> None:
        """Reset the counts. Texts that were paid for before count as paid once."""
        with self._counting:
            self.paid = Counter(dict.fromkeys(self.paid, 1))
            self.largest_batch = 0
            self.times.clear()

    def paid_again(self) -> int:
        """Count the texts that were paid for again."""
        with self._counting:
            return sum(times - 1 for times in self.paid.values())

    def fastest(self, start: float, end: float, window: float = 5.0) -> float:
        """Return the maximum number of requests per second between two times of time.monotonic()."""
        with self._counting:
            times = sorted(t for t in self.times if start <= t <= end)
        most, first = 0, 0
        for last, time in enumerate(times):
            while times[first] < time - window:
                first += 1
            most = max(most, last - first + 1)
        return most / window
