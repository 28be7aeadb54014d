"""Scores of passages, the best of them, and the mean and spread of a query's scores over the corpus."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.floating[Any]]


class Spread(NamedTuple):
    """Mean and standard deviation of one query's scores over the whole corpus."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, scores: Scores) -> "Spread":
        """The spread of scores (n,); zeros for n = 0, as when no passage passes a filter."""
        return cls(float(scores.mean()), float(scores.std())) if len(scores) else cls(0, 0)


def best(scores: Scores, k: int) -> NDArray[np.int64]:
    """Positions of the `k` highest scores, highest first; equal scores in their order."""
    if k < len(scores):
        least = np.partition(scores, len(scores) - k)[len(scores) - k]
        places = np.flatnonzero(scores >= least)
    else:
        places = np.arange(len(scores))
    return places[np.argsort(-scores[places], kind="stable")][:k]
