"""Fusion of dense and lexical scores for hybrid search."""

import numpy as np
from numpy.typing import NDArray

from embed.network.config import Fusion
from index.dense.scores import Scores, Spread


def fuse(
    fusion: Fusion, dense: Scores, lexical: Scores, dense_spread: Spread, lexical_spread: Spread
) -> Scores:
    """Fuse the dense and lexical scores of one query's candidates.

    "tm2c2" and "z" combine scores: a retriever that finds nothing relevant scores all candidates nearly equally and so
    has little influence. "rrf" combines ranks, which do not show that, and can fall far below the better retriever.

    Args:
        fusion: kind and weight.
        dense: (n,) cosines.
        lexical: (n,) BM25, 0 where no term of the query occurs.
        dense_spread, lexical_spread: mean and deviation of this query's scores over the corpus; used by "z" only.

    Returns:
        (n,) scores, higher is better: for "tm2c2" a convex combination of min-max scores with theoretical minima (Bruch
        et al. 2022), for "z" of standard scores; for "rrf" a sum of 1 / (k + rank) (Cormack et al. 2009).
    """
    if fusion.kind == "rrf":
        by_words = np.where(lexical > 0, 1 / (fusion.k + _ranks(lexical)), 0)
        return (1 / (fusion.k + _ranks(dense)) + by_words).astype(np.float32)
    if fusion.kind == "tm2c2":
        dense, lexical = (dense + 1) / 2, lexical / np.float32(lexical.max(initial=0) or 1)
    else:
        dense, lexical = _standard(dense, dense_spread), _standard(lexical, lexical_spread)
    return fusion.dense_weight * dense + (1 - fusion.dense_weight) * lexical


def _standard(scores: Scores, spread: Spread) -> Scores:
    return (scores - np.float32(spread.mean)) / np.float32(spread.deviation or 1)


def _ranks(scores: Scores) -> NDArray[np.int64]:
    """Ranks (n,), 1 for the highest score; equal scores are ranked in their order."""
    ranks = np.empty(len(scores), dtype=np.int64)
    ranks[np.argsort(-scores, kind="stable")] = np.arange(1, len(scores) + 1)
    return ranks
