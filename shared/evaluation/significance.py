"""Paired comparison of two runs: randomisation test and bootstrap interval."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shared.evaluation.answers import Answers
from shared.evaluation.measures import CUT
from shared.evaluation.question_sets import Run

ROUNDS = 10_000  # of the randomisation test and the bootstrap
BLOCK = 1_000_000  # numbers drawn at once
SEED = 20_240_607


@dataclass(frozen=True, slots=True)
class Difference:
    """The mean of B − A over the questions. `p`: two-sided; `low`, `high`: the 95 % interval of the bootstrap."""

    measure: str
    mean: float
    p: float
    low: float
    high: float
    wins: int
    losses: int
    ties: int


def compare(a: Run | Answers, b: Run | Answers) -> Difference:
    """Compare two runs over the same questions in the same order."""
    return difference(a.scores(), b.scores(), a.measure)


def difference(a: Sequence[float], b: Sequence[float], measure: str = f"nDCG@{CUT}") -> Difference:
    differences = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    differences[np.abs(differences) < 1e-12] = 0.0
    low, high = np.quantile(_bootstrap(differences), [0.025, 0.975])
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    mean, p, ties = float(differences.mean()), _randomisation(differences), len(differences) - wins - losses
    return Difference(measure, mean, p, float(low), float(high), wins, losses, ties)


def _randomisation(differences: npt.NDArray[np.float64]) -> float:
    """The share of random swaps of each pair that differ at least as much, with the observed order counted.

    Source: Smucker, Allan & Carterette 2007.
    """
    moved = differences[differences != 0]
    if not len(moved):
        return 1.0
    generator, as_large = np.random.default_rng(SEED), 0
    for rounds in _blocks(len(moved)):
        signs = generator.integers(0, 2, (rounds, len(moved)), dtype=np.int8) * 2.0 - 1.0
        as_large += int((np.abs(signs @ moved) >= abs(moved.sum()) - 1e-9).sum())
    return (as_large + 1) / (ROUNDS + 1)


def _bootstrap(differences: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    generator, n = np.random.default_rng(SEED), len(differences)
    drawn = [differences[generator.integers(0, n, (rounds, n))].mean(axis=1) for rounds in _blocks(n)]
    return np.concatenate(drawn)


def _blocks(n: int) -> Iterator[int]:
    """Split ROUNDS into blocks, so that thousands of questions do not need gigabytes."""
    size, left = max(1, BLOCK // n), ROUNDS
    while left:
        yield min(size, left)
        left -= min(size, left)
