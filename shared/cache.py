"""Cache in Redis for question embeddings and rewritten questions. If Redis is down, every look-up is a miss."""

import hashlib
import time
import unicodedata
from collections.abc import Callable

import numpy as np
import redis

from shared.broker import client

LIFETIME_SECONDS = 7 * 86_400
ENTRIES = 20_000  # the queue is on this server too and must not be evicted, so the cache counts its own entries
PAUSE_SECONDS = 5.0  # without a look-up, after Redis failed

_STORE = """
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
redis.call('ZADD', KEYS[2], ARGV[3], KEYS[1])
local over = redis.call('ZCARD', KEYS[2]) - tonumber(ARGV[4])
if over > 0 then
  for _, key in ipairs(redis.call('ZPOPMIN', KEYS[2], over)) do redis.call('DEL', key) end
end
"""


class QuestionCache:
    """(scope, normalised question) → embedding (float32, shape (dimensions,)) or text.

    `scope`: everything else that the value depends on.
    """

    def __init__(self, url: str) -> None:
        self._redis = client(url)
        self._away_until = 0.0

    def get(self, scope: str, question: str) -> np.ndarray | None:
        value = self._read(scope, question)
        return None if value is None else np.frombuffer(value, dtype=np.float32)

    def put(self, scope: str, question: str, vector: np.ndarray) -> None:
        self._write(scope, question, vector.astype(np.float32).tobytes())

    def get_text(self, scope: str, question: str) -> str | None:
        value = self._read(scope, question)
        return None if value is None else value.decode()

    def put_text(self, scope: str, question: str, text: str) -> None:
        self._write(scope, question, text.encode())

    def _read(self, scope: str, question: str) -> bytes | None:
        value = self._unless_down(lambda: self._redis.get(_key(scope, question)))
        return value if isinstance(value, bytes) else None

    def _write(self, scope: str, question: str, value: bytes) -> None:
        keys = (_key(scope, question), "askfolder:questions")
        arguments = (value, LIFETIME_SECONDS, int(time.time()), ENTRIES)
        self._unless_down(lambda: self._redis.eval(_STORE, len(keys), *keys, *arguments))

    def _unless_down(self, call: Callable[[], object]) -> object:
        """The result of a call; None if Redis failed, now or a moment ago."""
        if time.monotonic() < self._away_until:
            return None
        try:
            return call()
        except redis.RedisError:
            self._away_until = time.monotonic() + PAUSE_SECONDS
            return None


def _key(scope: str, question: str) -> str:
    normal = " ".join(unicodedata.normalize("NFC", question).split())
    return f"askfolder:question:{scope}:{hashlib.sha256(normal.encode('utf-8', 'replace')).hexdigest()}"
