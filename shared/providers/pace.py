"""The pace of requests to a provider: unlimited until the provider asks to slow down, then limited for all processes.

The process that is told to slow down records it in Redis. No process sends a request before the pause is over. Then
requests are spaced, and the gap halves with each success until it disappears. Without Redis each process waits alone.
"""

import hashlib
import math
import random
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import redis

from shared.broker import client
from shared.errors import TransientError

FIRST_MS, SHORTEST_MS, LONGEST_MS = 500, 30, 16_000  # the gap between two requests after a pause
LIFETIME_MS = 120_000  # of the record in Redis, after the pause
LONGEST_PAUSE = 3600.0  # seconds, even if the provider asks for more; then a request is tried
NAP = 0.25  # seconds until Redis is asked again: another process may have extended the pause
AWAY_SECONDS = 5.0  # Redis is not used for so long after a failure

# The record is a hash, in milliseconds of the server's clock: end of the pause, time of the next request, gap.
_NOW = "local t = redis.call('TIME') local now = t[1] * 1000 + math.floor(t[2] / 1000)\n"
_NOW += "local s = redis.call('HMGET', KEYS[1], 'pause', 'next', 'gap')\n"

# Returns milliseconds until the next attempt; 0: go; -1: go, no pause recorded. ARGV: 1 ignores the gap, not the pause.
_TAKE = f"""{_NOW}
if not s[1] then return -1 end
if now < tonumber(s[1]) then return tonumber(s[1]) - now end
if ARGV[1] == '1' then return 0 end
if now < tonumber(s[2]) then return tonumber(s[2]) - now end
redis.call('HSET', KEYS[1], 'next', now + tonumber(s[3]))
return 0
"""

# ARGV: the pause that the provider asks for, the first and the longest gap, the lifetime. The gap doubles once per
# pause, because many requests are refused at once. Returns the remaining milliseconds of the pause.
_SLOW = f"""{_NOW}
local pause, gap = tonumber(s[1] or 0), tonumber(s[3] or 0)
if now >= pause then gap = math.min(math.max(gap * 2, tonumber(ARGV[2])), tonumber(ARGV[3])) end
pause = math.max(pause, now + math.max(tonumber(ARGV[1]), gap))
redis.call('HSET', KEYS[1], 'pause', pause, 'next', pause, 'gap', gap)
redis.call('PEXPIRE', KEYS[1], pause - now + tonumber(ARGV[4]))
return pause - now
"""

# ARGV: the shortest gap. A success during the pause belongs to an earlier request and changes nothing.
_WELL = f"""{_NOW}
if not s[1] or now < tonumber(s[1]) then return 0 end
local gap = math.floor(tonumber(s[3]) / 2)
if gap < tonumber(ARGV[1]) then return redis.call('DEL', KEYS[1]) end
redis.call('HSET', KEYS[1], 'gap', gap, 'next', math.min(tonumber(s[2]), now + gap))
return 0
"""


class Pace:
    """The pace of one model at one address. Thread-safe. `key` names its record in Redis."""

    def __init__(
        self, redis_url: str, who: str, url: str, model: str, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        """`redis_url`: "" for a pace of this process alone. `who`: the provider's name, for messages."""
        place = f"{urlsplit(url).netloc.rpartition('@')[2]} {model}"
        self.key = f"askfolder:pace:{hashlib.sha256(place.encode()).hexdigest()[:16]}"
        self.redis = client(redis_url) if redis_url else None
        self._who, self._sleep = who, sleep
        self._away_until = 0.0

    def wait(self, seconds: float, urgent: bool = False) -> bool:
        """Wait for permission to send a request. Returns True if the caller must report success with `went_well`.

        `urgent`: a user is waiting, so only the pause applies, not the gap. TransientError: it would take longer than
        `seconds`; `retry_after` says how long.
        """
        deadline = time.monotonic() + seconds
        while (nap := self.turn(deadline, urgent)) > 0:
            self._sleep(nap)
        return nap == 0

    def turn(self, deadline: float, urgent: bool = False) -> float:
        """Non-blocking `wait`: seconds until the next attempt, at most about 0.25.

        0: go, and report success with `went_well`; negative: go, no pause is recorded. `deadline`: of `time.monotonic`.
        """
        left = self._run(_TAKE, int(urgent)) / 1000
        if left <= 0:
            return left
        if time.monotonic() + left > deadline:
            raise TransientError(f"{self._who} asked to slow down; requests pause for {math.ceil(left)} s.", left)
        return min(left, NAP) + random.uniform(0, 0.02)

    def slow(self, retry_after: float | None) -> None:
        """Record that the provider asked to slow down. `retry_after`: the pause in seconds, if it named one."""
        self._run(_SLOW, int(1000 * min(retry_after or 0.0, LONGEST_PAUSE)), FIRST_MS, LONGEST_MS, LIFETIME_MS)

    def went_well(self) -> None:
        """Record a success: the gap shrinks."""
        self._run(_WELL, SHORTEST_MS)

    def close(self) -> None:
        if self.redis is not None:
            self.redis.close()

    def _run(self, script: str, *arguments: int) -> int:
        if self.redis is None or time.monotonic() < self._away_until:
            return -1
        try:
            return int(self.redis.eval(script, 1, self.key, *arguments))
        except redis.RedisError:
            self._away_until = time.monotonic() + AWAY_SECONDS
            return -1
