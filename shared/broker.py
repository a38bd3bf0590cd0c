"""Redis: a client that fails fast, the address for Celery, and a check of the server."""

from urllib.parse import urlsplit

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from shared.errors import SettingsError, TransientError


def client(url: str) -> "redis.Redis":
    """Open a client that gives up within about two seconds, because some callers can work without Redis."""
    return redis.Redis.from_url(
        url,
        socket_timeout=1.0,
        socket_connect_timeout=1.0,
        retry=Retry(ExponentialWithJitterBackoff(cap=0.2, base=0.05), 1),
    )


def broker_url(url: str) -> str:
    """Convert an address for Kombu: unix:///path?db=0 becomes redis+socket:///path?virtual_host=0."""
    if not url.startswith("unix://"):
        return url
    return url.replace("unix://", "redis+socket://", 1).replace("?db=", "?virtual_host=")


def check(url: str) -> None:
    """Check that Redis can hold the queue. SettingsError: it cannot. TransientError: it does not answer."""
    where = urlsplit(url).hostname or "its socket"
    try:
        with client(url) as connection:
            server, memory = connection.info("server"), connection.info("memory")
    except redis.AuthenticationError:
        raise SettingsError(f"The Redis at {where} refuses the password of REDIS_URL.") from None
    except redis.RedisError as error:
        raise TransientError(f"Redis ({where}) does not answer: {error}") from None
    version = str(server.get("redis_version", "0"))
    if "valkey_version" not in server and tuple(int(part) for part in version.split(".")[:2]) < (6, 2):
        raise SettingsError(f"The Redis at {where} is {version}; askfolder needs 6.2 or newer, or Valkey.")
    if (policy := memory.get("maxmemory_policy", "noeviction")) != "noeviction" and memory.get("maxmemory"):
        raise SettingsError(
            f"The Redis at {where} may evict the queue (maxmemory-policy {policy}): set it to noeviction, or use "
            "another server."
        )
