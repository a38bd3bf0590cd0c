"""Redis addresses as redis-py and as Celery want them, and a client whose failures are quick."""

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry


def client(url: str) -> "redis.Redis":
    """A client that gives up within about two seconds; a caller for whom Redis is optional must not wait for it."""
    return redis.Redis.from_url(
        url,
        socket_timeout=1.0,
        socket_connect_timeout=1.0,
        retry=Retry(ExponentialWithJitterBackoff(cap=0.2, base=0.05), 1),
    )


def broker_url(url: str) -> str:
    """Kombu's name for an address: unix:///path?db=0 is redis+socket:///path?virtual_host=0 there."""
    return (
        url.replace("unix://", "redis+socket://", 1).replace("?db=", "?virtual_host=")
        if url.startswith("unix://")
        else url
    )
