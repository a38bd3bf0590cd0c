"""A question with its options."""

from dataclasses import dataclass
from typing import Literal

from api.retrieval.filters import EVERYTHING, Filters
from shared.models import Turn

COSINE_WEIGHT = 0.65  # against BM25 divided by its maximum: better than rank fusion and rescaling on nine data sets
PASSAGES = 8  # for an answer
Mode = Literal["hybrid", "dense", "lexical"]


@dataclass(frozen=True, slots=True)
class Query:
    """A question, and how to search for it and answer it.

    `weight`: of cosine against BM25, 0 to 1. `rerank`: with the reranker, if one is set up. `neighbours`: characters
    that a passage may have together with its neighbours; 0: none are joined. `strict`: leave out sentences without
    support. `turns`: the conversation before. `deep`: the model may search by itself.
    """

    text: str
    top_k: int = PASSAGES
    mode: Mode = "hybrid"
    filters: Filters = EVERYTHING
    rerank: bool = True
    weight: float = COSINE_WEIGHT
    neighbours: int = 0
    strict: bool = True
    turns: tuple[Turn, ...] = ()
    deep: bool = False
