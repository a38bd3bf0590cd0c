"""Calls of a running system's API, as the command line makes them."""

from collections.abc import Iterator
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import httpx2

from shared import access
from shared.errors import AskfolderError
from shared.settings import Settings


class NotRunningError(AskfolderError):
    """Nobody answers at the address."""


class Client:
    """One system. Raises NotRunningError, or AskfolderError with what the system says is wrong."""

    def __init__(self, url: str, key: str, seconds: float) -> None:
        local = urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
        self.url = url
        self.http = httpx2.Client(
            base_url=url, trust_env=not local, timeout=seconds, headers={"Authorization": f"Bearer {key}"}
        )

    @classmethod
    def of(cls, settings: Settings) -> "Client":
        return cls(address(settings), key(settings), settings.ask_seconds + 10)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:  # fmt: skip
        self.http.close()

    def call(self, method: str, path: str, body: object = None, query: dict[str, Any] | None = None) -> Any:
        """The answer as JSON."""
        try:
            response = self.http.request(method, path, json=body, params=query)
        except httpx2.HTTPError as error:
            raise NotRunningError(
                f"askfolder does not answer at {self.url} ({error}). Start it with `make up`, or set ASKFOLDER_URL."
            ) from None
        try:
            answer = response.json()
        except ValueError:
            answer = {"detail": response.text[:300]}
        if response.is_error:
            detail = answer.get("detail") if isinstance(answer, dict) else None
            raise AskfolderError(f"{detail or answer} ({response.status_code} from {self.url})")
        return answer

    def documents(self, **query: Any) -> Iterator[dict[str, Any]]:
        cursor: int | None = 0
        while cursor is not None:
            listing = self.call("GET", "/documents", query={"limit": 1000, "cursor": cursor, **query})
            yield from listing["documents"]
            cursor = listing["next_cursor"]


def address(settings: Settings) -> str:
    if settings.url:
        return settings.url.rstrip("/")
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


def key(settings: Settings) -> str:
    return settings.key.get_secret_value() if settings.key else access.key(settings)
