"""Resources of the app: settings, pool, caches, embedders, reranker and meter."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from flask import (
    current_app,
)
from psycopg_pool import ConnectionPool

from api.question_log import QuestionLog
from api.retrieval.reranking import Reranking
from shared.cache import QuestionCache
from shared.db import Connection
from shared.ledger.generations import Generation
from shared.providers.claude import Claude
from shared.providers.embedder import Embedder
from shared.providers.meter import UNMETERED, Meter
from shared.settings import Settings


@dataclass(frozen=True, slots=True)
class Resources:
    """What answering needs. `embedder_of`: the embedder of a generation; `local`: sentences → vectors of the built-in model;
    `reranking`: None when none is set up; `meter`: what counts the cost; `claude`: None if answers are quotes only.
    """

    settings: Settings
    pool: ConnectionPool[Connection]
    cache: QuestionCache
    embedder_of: Callable[[Generation], Embedder]
    local: Callable[[Sequence[str]], np.ndarray]
    reranking: Reranking | None = None
    meter: Meter = UNMETERED
    claude: Claude | None = None


def resources() -> Resources:
    asker: Resources = current_app.extensions["askfolder"]
    return asker


def questions_writer() -> QuestionLog:
    kept: QuestionLog = current_app.extensions["askfolder.questions"]
    return kept
