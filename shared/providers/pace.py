"""How fast a provider is asked: at once, until it says that it is too much; then all processes slow down together.

Whoever is told to slow down says so in Redis. Nobody asks before the pause is over; then requests go one after another, at
a distance that halves with each that goes well, and soon there is none. Without Redis each process waits for itself.
"""

import hashlib
import math
import random
import time
from urllib.parse import urlsplit

import redis

from shared.broker import client
from shared.errors import TransientError

FIRST_MS, SHORTEST_MS, LONGEST_MS = 500, 30, 16_000  # between two requests, after a pause
LIFETIME_MS = 120_000  # of what is known, beyond the pause
LONGEST_PAUSE = 3600.0  # seconds, whatever a provider asks for: then it is tried
NAP = 0.25  # seconds after which whoever waits looks again: another process may have heard more
AWAY_SECONDS = 5.0  # after a failure Redis is left alone for so long
_sleep = time.sleep  # tests replace it

# All in milliseconds of the server's clock. A hash: pause: until when; next: when the next may go; gap: between two.
_NOW = "local t = redis.call('TIME') local now = t[1] * 1000 + math.floor(t[2] / 1000)\n"
_NOW += "local s = redis.call('HMGET', KEYS[1], 'pause', 'next', 'gap')\n"

# Milliseconds to wait and ask again; 0: go; -1: go, nobody was told to slow down. ARGV: 1 where somebody waits: it goes as soon as the pause is over.
_TAKE = f"""{_NOW}
if not s[1] then return -1 end
if now < tonumber(s[1]) then return tonumber(s[1]) - now end
if ARGV[1] == '1' then return 0 end
if now < tonumber(s[2]) then return tonumber(s[2]) - now end
redis.call('HSET', KEYS[1], 'next', now + tonumber(s[3]))
return 0
"""

# ARGV: how long the provider wants to be left alone, the first gap, the longest, lifetime. Many are told at once: the gap
# doubles once a pause. Returns the milliseconds that are left of the pause.
_SLOW = f"""{_NOW}
local pause, gap = tonumber(s[1] or 0), tonumber(s[3] or 0)
if now >= pause then gap = math.min(math.max(gap * 2, tonumber(ARGV[2])), tonumber(ARGV[3])) end
pause = math.max(pause, now + math.max(tonumber(ARGV[1]), gap))
redis.call('HSET', KEYS[1], 'pause', pause, 'next', pause, 'gap', gap)
redis.call('PEXPIRE', KEYS[1], pause - now + tonumber(ARGV[4]))
return pause - now
"""

# ARGV: the shortest gap. What was sent before the pause says nothing about the time after it.
_WELL = f"""{_NOW}
if not s[1] or now < tonumber(s[1]) then return 0 end
local gap = math.floor(tonumber(s[3]) / 2)
if gap < tonumber(ARGV[1]) then return redis.call('DEL', KEYS[1]) end
redis.call('HSET', KEYS[1], 'gap', gap, 'next', math.min(tonumber(s[2]), now + gap))
return 0
"""


class Pace:
    """Of one model at one address. Threads share it."""

    def __init__(self, redis_url: str, who: str, url: str, model: str) -> None:
        """`who`: the provider's name, for a sentence. `redis_url`: empty: each process for itself."""
        place = f"{urlsplit(url).netloc.rpartition('@')[2]} {model}"
        self._who = who
        self._key = f"askfolder:pace:{hashlib.sha256(place.encode()).hexdigest()[:16]}"
        self._redis = client(redis_url) if redis_url else None
        self._away_until = 0.0

    def wait(self, seconds: float, urgent: bool = False) -> bool:
        """Returns when the provider may be asked, and whether it had said before that it is too much: then `went_well` counts.

        `urgent`: somebody waits: only a pause is kept, no distance. TransientError: it would take more than so many seconds;
        `retry_after`: how long.
        """
        deadline = time.monotonic() + seconds
        while (nap := self.turn(deadline, urgent)) > 0:
            _sleep(nap)
        return nap == 0

    def turn(self, deadline: float, urgent: bool = False) -> float:
        """As `wait`, for who has something to do meanwhile: seconds after which to ask again, at most a quarter or so.

        0: go, `went_well` counts; less: go, nobody was told to slow down. `deadline`: of `time.monotonic`.
        """
        left = self._ask(_TAKE, int(urgent)) / 1000
        if left <= 0:
            return left
        if time.monotonic() + left > deadline:
            raise TransientError(f"{self._who} asked to slow down; it is left alone for {math.ceil(left)} s.", left)
        return min(left, NAP) + random.uniform(0, 0.02)

    def slow(self, retry_after: float | None) -> None:
        """The provider said that it is too much. `retry_after`: seconds that it wants to be left alone, if it said so."""
        self._ask(_SLOW, int(1000 * min(retry_after or 0.0, LONGEST_PAUSE)), FIRST_MS, LONGEST_MS, LIFETIME_MS)

    def went_well(self) -> None:
        """An answer came: the distance shrinks."""
        self._ask(_WELL, SHORTEST_MS)

    def close(self) -> None:
        if self._redis is not None:
            self._redis.close()

    def _ask(self, script: str, *arguments: int) -> int:
        if self._redis is None or time.monotonic() < self._away_until:
            return -1
        try:
            return int(self._redis.eval(script, 1, self._key, *arguments))
        except redis.RedisError:
            self._away_until = time.monotonic() + AWAY_SECONDS
            return -1
