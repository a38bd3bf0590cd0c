"""A client that asks continuously: no answer may mix revisions, show an empty document, or fail after an outage."""

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Collection, Iterator
from typing import Any, Self

import httpx2

from tests.faults.folder import Folder
from tests.faults.standin import QUESTION
from tests.faults.system import Faulty

GRACE_SECONDS = 8.0  # seconds after an outage, in which pools reconnect


class Reader:
    """Ask in a thread. `mixed`, `empty`, `broken`: examples of faults; `late`: seconds of errors after an outage."""

    def __init__(self, system: Faulty, folders: Collection[Folder], pause: float = 0.1) -> None:
        self.system, self.folders, self.pause = system, folders, pause
        self.answers = self.errors = 0
        self.mixed: list[str] = []
        self.empty: list[str] = []
        self.broken: list[str] = []
        self.late = 0.0
        self._outages = 0
        self._outage_ended = -GRACE_SECONDS
        self._began = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @contextlib.contextmanager
    def outage(self) -> Iterator[None]:
        """Allow errors inside the block and for a moment after it."""
        self._outages += 1
        try:
            yield
        finally:
            self._outage_ended = time.monotonic()
            self._outages -= 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(60)

    def _run(self) -> None:
        with self.system.client() as client:
            number = 0
            while not self._ended.wait(self.pause):
                number += 1
                asked = time.monotonic()
                outage = self._outages > 0
                try:
                    if number % 5 == 0:
                        self._list(client)
                    else:
                        self._search(client, filtered=number % 5 < 4)
                    self.answers += 1
                except (httpx2.HTTPError, _Refused) as error:
                    self._failed(asked, outage, error)

    def _failed(self, asked: float, outage: bool, error: Exception) -> None:
        self.errors += 1
        if outage or self._outages:
            return
        since = asked - self._outage_ended
        self.late = max(self.late, since if self._outage_ended > 0 else 0.0)
        if since > GRACE_SECONDS or self._outage_ended < 0:
            self.broken.append(f"{error} at {asked - self._began:.0f} s")

    def _search(self, client: httpx2.Client, filtered: bool) -> None:
        body: dict[str, Any] = {
            "query": f"{QUESTION} what is said of the heron and the boat?",
            "top_k": 100 if filtered else 20,
        }
        if filtered and (keys := [key for folder in self.folders for key in list(folder.documents)]):
            body["filters"] = {"source": keys[int(time.monotonic() * 1000) % len(keys)]}
        body["mode"] = "hybrid" if int(time.monotonic() * 1000) % 2 else "lexical"
        by_source: dict[str, list[str]] = defaultdict(list)
        for result in _answer(client.post("/search", json=body))["results"]:
            by_source[result["source"]].append(result["content"])
        for source, contents in by_source.items():
            for folder in self.folders:
                if source.startswith(f"{folder.below}/") and not folder.is_one_revision(contents):
                    self.mixed.append(f"{source} at {time.monotonic() - self._began:.0f} s")

    def _list(self, client: httpx2.Client) -> None:
        for row in _answer(client.get("/documents", params={"limit": 300}))["documents"]:
            if row["state"] == "ready" and not row["chunks"]:
                self.empty.append(row["source"])


class _Refused(Exception):
    pass


def _answer(response: httpx2.Response) -> dict[str, Any]:
    if response.status_code >= 500:
        raise _Refused(f"HTTP {response.status_code}")
    found: dict[str, Any] = response.json()
    return found
