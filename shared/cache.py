"""Question embeddings in Redis. A cache that is down is a miss, never an error."""

import hashlib
import time
import unicodedata

import numpy as np
import redis

from shared.queue import client

LIFETIME_SECONDS = 7 * 86_400
ENTRIES = 20_000  # the queue shares this server and may never be evicted, so the cache counts its own entries
PAUSE_SECONDS = 5.0  # after a failure Redis is left alone for so long

_STORE = """
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
redis.call('ZADD', KEYS[2], ARGV[3], KEYS[1])
local over = redis.call('ZCARD', KEYS[2]) - tonumber(ARGV[4])
if over > 0 then
  for _, key in ipairs(redis.call('ZPOPMIN', KEYS[2], over)) do redis.call('DEL', key) end
end
"""


class QuestionCache:
    """(scope, normalised question) → embedding: float32, shape (dimensions,). `scope` names model and dimensions."""

    def __init__(self, url: str) -> None:
        self._redis = client(url)
        self._away_until = 0.0

    def get(self, scope: str, question: str) -> np.ndarray | None:
        if time.monotonic() < self._away_until:
            return None
        try:
            value = self._redis.get(_key(scope, question))
        except redis.RedisError:
            self._away_until = time.monotonic() + PAUSE_SECONDS
            return None
        return np.frombuffer(value, dtype=np.float32) if isinstance(value, bytes) else None

    def put(self, scope: str, question: str, vector: np.ndarray) -> None:
        if time.monotonic() < self._away_until:
            return
        value = vector.astype(np.float32).tobytes()
        try:
            self._redis.eval(
                _STORE,
                2,
                _key(scope, question),
                "askfolder:questions",
                value,
                LIFETIME_SECONDS,
                int(time.time()),
                ENTRIES,
            )
        except redis.RedisError:
            self._away_until = time.monotonic() + PAUSE_SECONDS


def _key(scope: str, question: str) -> str:
    normal = " ".join(unicodedata.normalize("NFC", question).split())
    return f"askfolder:question:{scope}:{hashlib.sha256(normal.encode('utf-8', 'replace')).hexdigest()}"
