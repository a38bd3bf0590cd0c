"""Resources that all requests share: settings, pool, cache, embedders, reranker, meter, question log, key."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
from flask import current_app
from psycopg_pool import ConnectionPool

from api.question_log import QuestionLog
from shared.cache import QuestionCache
from shared.db import Connection
from shared.ledger.generations import Generation
from shared.models import Passage
from shared.providers.claude import Claude
from shared.providers.embedder import Embedder
from shared.providers.meter import Meter
from shared.settings import Settings


class PassageOrder(Protocol):
    """A reranker of passages; api/retrieval/reranking.py has the only one."""

    def order(self, question: str, passages: Sequence[Passage]) -> tuple[list[Passage], list[str]]:
        """The passages in their new order, and a warning if they could not be reranked. Never raises."""


@dataclass(frozen=True, slots=True)
class Resources:
    """Opened once when the app starts. `local`: sentences → vectors of the built-in model.

    `reranking`: None if no reranker is set up. `claude`: None if answers are quotes only. `hosts`: names that a request
    may give as its Host.
    """

    settings: Settings
    pool: ConnectionPool[Connection]
    cache: QuestionCache
    embedder_of: Callable[[Generation], Embedder]
    local: Callable[[Sequence[str]], np.ndarray]
    reranking: PassageOrder | None
    meter: Meter
    claude: Claude | None
    questions: QuestionLog
    key: str
    hosts: frozenset[str]


def resources() -> Resources:
    """The resources of the app that handles the current request."""
    return cast(Resources, current_app.extensions["askfolder"])
