"""Spend as fast as possible: several processes run `spend` at the same time, see tests/shared/test_meter.py."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from shared import db
from shared.providers.meter import BudgetError, Meter
from shared.providers.remote import Endpoint
from shared.providers.voyage import VoyageEmbedder

CAP = 0.01  # dollars
PROCESSES, THREADS = 4, 3
REFUSALS = 20  # refused calls after which a thread stops
TEXTS = ["some more words " * 200] * 2
WORDS = 1200  # tokens that the stand-in reports for them


def spend(database_url: str, url: str, results: Any) -> None:
    """Embed until the cap has refused often enough. Put (accepted calls, refusals) into the queue."""
    with db.pool(database_url, THREADS) as pool:
        endpoint = Endpoint("Voyage", "key", url, "VOYAGE_API_KEY")
        embedder = VoyageEmbedder(endpoint, "voyage-4-large", meter=Meter(pool, {"embedding": CAP}))

        def work(_: int) -> tuple[int, int]:
            embedded = refused = 0
            while refused < REFUSALS:
                try:
                    embedder.embed(TEXTS)
                    embedded += 1
                except BudgetError:
                    refused += 1
                    time.sleep(0.02)
            return embedded, refused

        with ThreadPoolExecutor(THREADS) as threads:
            counts = list(threads.map(work, range(THREADS)))
        embedder.close()
    results.put((sum(e for e, _ in counts), sum(r for _, r in counts)))
