"""Measures of a ranking: recall, reciprocal rank, nDCG, covered spans."""

import math
from collections.abc import Mapping, Sequence

DEPTHS = (5, 10, 20)
CUT = 10  # of nDCG and MRR
SPAN_PASSAGES = 5  # passages whose characters are compared with a question's spans
Span = tuple[int, int]  # start and end, in characters of a document's text


def recall(ranking: Sequence[str], relevant: Mapping[str, int], k: int) -> float:
    return len(relevant.keys() & set(ranking[:k])) / len(relevant)


def reciprocal_rank(ranking: Sequence[str], relevant: Mapping[str, int], k: int = CUT) -> float:
    return next((1 / rank for rank, document in enumerate(ranking[:k], 1) if document in relevant), 0.0)


def ndcg(ranking: Sequence[str], relevant: Mapping[str, int], k: int = CUT) -> float:
    """Normalised discounted cumulative gain; the gain is the grade, as in trec_eval, discounted by log₂(rank + 1)."""
    best = _discounted(sorted(relevant.values(), reverse=True)[:k])
    return _discounted([relevant.get(document, 0) for document in ranking[:k]]) / best


def _discounted(gains: Sequence[int]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, 1))


def measures(ranking: Sequence[str], relevant: Mapping[str, int]) -> dict[str, float]:
    """Return all measures of one question. `ranking`: documents, best first, none twice."""
    found = {f"recall@{k}": recall(ranking, relevant, k) for k in DEPTHS}
    return found | {f"nDCG@{CUT}": ndcg(ranking, relevant), f"MRR@{CUT}": reciprocal_rank(ranking, relevant)}


def covered(places: Sequence[tuple[str, int, int]], spans: Mapping[str, Sequence[Span]]) -> dict[str, float]:
    """Recall and precision of the spans' characters in the first passages."""
    wanted = {(name, n) for name, pairs in spans.items() for start, end in pairs for n in range(start, end)}
    given = {(name, n) for name, start, end in places[:SPAN_PASSAGES] for n in range(start, end)}
    both = len(wanted & given)
    return {
        f"span recall@{SPAN_PASSAGES}": both / len(wanted),
        f"span precision@{SPAN_PASSAGES}": both / max(len(given), 1),
    }
