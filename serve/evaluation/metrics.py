"""Figures of answers: AUROC, coverage at a precision."""

import numpy as np
from numpy.typing import NDArray


def auroc(scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> float:
    """Area under the ROC curve: the probability that a positive scores above a negative; equal scores count half."""
    n_positive, n_negative = int(labels.sum()), int((~labels).sum())
    if not n_positive or not n_negative:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # from 1; equal scores share their mean rank
    return float((ranks[labels].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def precisions(scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(n,) the share of right ones among the 1, 2, …, n items with the highest scores."""
    return np.cumsum(labels[np.argsort(-scores, kind="stable")]) / np.arange(1, len(labels) + 1)


def coverage(scores: NDArray[np.float64], labels: NDArray[np.bool_], precision: float) -> tuple[float, float]:
    """The largest share of items with the highest scores of which at least `precision` are right, and its threshold.

    The threshold is 1 if there is no such share.
    """
    enough = np.flatnonzero(precisions(scores, labels) >= precision)
    if not len(enough):
        return 0.0, 1.0
    return float((enough[-1] + 1) / len(labels)), float(np.sort(scores)[::-1][enough[-1]])
