"""A client of a running system's API, for the command line and evaluation."""

import json
from collections.abc import Iterator
from typing import Any, NoReturn, Self
from urllib.parse import urlsplit

import httpx2

from shared import keys
from shared.errors import AskfolderError
from shared.settings import Settings


class NotRunningError(AskfolderError):
    """No system can be reached at the address."""


class Client:
    """Calls one system. Raises NotRunningError, or AskfolderError with the reason that the system gives."""

    def __init__(self, url: str, key: str, seconds: float) -> None:
        local = urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
        self.url = url
        self.http = httpx2.Client(
            base_url=url, trust_env=not local, timeout=seconds, headers={"Authorization": f"Bearer {key}"}
        )

    @classmethod
    def of(cls, settings: Settings) -> "Client":
        return cls(address(settings), key(settings), settings.ask_seconds + 10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def call(self, method: str, path: str, body: object = None, query: dict[str, Any] | None = None) -> Any:
        """Return the answer, which is JSON."""
        try:
            response = self.http.request(method, path, json=body, params=query)
        except httpx2.HTTPError as error:
            raise self._absent(error) from None
        if response.is_error:
            self._refuse(response)
        return _content(response)

    def events(self, path: str, body: object) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield name and content of each event of a streamed answer up to `done`. Without one, raise an error."""
        name, data = "", ""
        try:
            with self.http.stream("POST", path, json=body, headers={"Accept": "text/event-stream"}) as response:
                if response.is_error:
                    response.read()
                    self._refuse(response)
                for line in response.iter_lines():
                    field, _, value = line.partition(": ")
                    if field == "event":
                        name = value
                    elif field == "data":
                        data = value
                    elif not line and name:
                        content = json.loads(data)
                        if name == "error":
                            raise AskfolderError(f"{content['detail']} ({content['status']} from {self.url})")
                        yield name, content
                        if name == "done":
                            return
                        name = ""
        except httpx2.TransportError as error:
            if name:
                reason = f"The connection to {self.url} broke in the middle of the answer ({error})."
                raise AskfolderError(reason) from None
            raise self._absent(error) from None
        raise AskfolderError(f"The answer of {self.url} ended too early. Ask again.")

    def _absent(self, error: Exception) -> NotRunningError:
        return NotRunningError(
            f"Can't reach askfolder at {self.url} ({error}). Start it with `make up`, or set ASKFOLDER_URL."
        )

    def _refuse(self, response: httpx2.Response) -> NoReturn:
        answer = _content(response)
        detail = answer.get("detail") if isinstance(answer, dict) else None
        raise AskfolderError(f"{detail or answer} ({response.status_code} from {self.url})")

    def listings(self, **query: Any) -> Iterator[dict[str, Any]]:
        """Yield the pages of GET /documents."""
        cursor: int | None = 0
        while cursor is not None:
            listing = self.call("GET", "/documents", query={"limit": 1000, "cursor": cursor, **query})
            yield listing
            cursor = listing["next_cursor"]


def _content(response: httpx2.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return {"detail": response.text[:300]}


def address(settings: Settings) -> str:
    """The address of the system to talk to."""
    return settings.url.rstrip("/") or local_address(settings)


def local_address(settings: Settings) -> str:
    """The address of the system that these settings start."""
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


def key(settings: Settings) -> str:
    return settings.key.get_secret_value() if settings.key else keys.key(settings)
