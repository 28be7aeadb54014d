"""Dense, lexical and hybrid ranking of the passages in one state of an index."""

import numpy as np

from embed.data.vectors import Vectors
from embed.network.config import Fusion
from index.dense.scores import Scores, Spread
from index.dense.view import View
from index.search.fusion import fuse
from index.search.hits import Ranked
from index.search.matches import Matches
from index.store.store import Numbers


def rank_lexical(matches: Matches, k: int) -> list[Ranked]:
    """The `k` matches with the highest BM25."""
    best = _best(matches.scores, k)
    pairs = zip(matches.numbers[best].tolist(), matches.scores[best].tolist(), strict=True)
    return [Ranked(number, score, None, score) for number, score in pairs]


def rank_dense(view: View, queries: Vectors, k: int, allowed: Numbers | None) -> list[list[Ranked]]:
    """The `k` nearest passages for each mapped query (Q, d), among the passage ids `allowed` (None for all)."""
    results = []
    for numbers, scores in _nearest(view, queries, k, allowed):
        pairs = zip(numbers.tolist(), scores.tolist(), strict=True)
        results.append([Ranked(number, score, score, None) for number, score in pairs])
    return results


def rank_hybrid(
    view: View, queries: Vectors, matches: list[Matches], k: int, allowed: Numbers | None, fusion: Fusion
) -> list[list[Ranked]]:
    """The `k` best passages for each query by fused dense and lexical scores.

    The best candidates of each retriever are taken; all candidates get exact scores from both, which are fused. With a
    filter, scores are normalised over the passages `allowed`.

    Args:
        view: the vectors.
        queries: (Q, d), mapped.
        matches: Q lexical results within `allowed`.
        k: number of passages per query.
        allowed: ids of the passages to search; None for all.
        fusion: kind and weight of the fusion.
    """
    n_candidates = max(100, 10 * k)
    n_passages = len(view) if allowed is None else len(allowed)
    results = []
    for query, found, (nearest, _) in zip(
        queries, matches, _nearest(view, queries, n_candidates, allowed), strict=True
    ):
        candidates = np.union1d(nearest, found.numbers[_best(found.scores, n_candidates)])
        dense, lexical = view.score(query, candidates), found.of(candidates)
        spread = Spread(0, 0)
        if fusion.kind == "z":
            spread = view.spread(query) if allowed is None else Spread.of(view.score(query, allowed))
        scores = fuse(fusion, dense, lexical, spread, found.spread(n_passages))
        best = _best(scores, k)
        columns = (candidates[best], scores[best], dense[best], lexical[best])
        results.append([Ranked(*row) for row in zip(*(c.tolist() for c in columns), strict=True)])
    return results


def _nearest(view: View, queries: Vectors, k: int, allowed: Numbers | None) -> list[tuple[Numbers, Scores]]:
    if allowed is None:
        return view.search(queries, k)
    # Exact search among the passages that pass the filter: finds k if at least k pass, however selective it is.
    results = []
    for query in queries:
        scores = view.score(query, allowed)
        best = _best(scores, k)
        results.append((allowed[best], scores[best]))
    return results


def _best(scores: Scores, k: int) -> Numbers:
    """Positions of the `k` highest scores, highest first; equal scores in their order."""
    if k < len(scores):
        least = np.partition(scores, len(scores) - k)[len(scores) - k]
        places = np.flatnonzero(scores >= least)
    else:
        places = np.arange(len(scores))
    return places[np.argsort(-scores[places], kind="stable")][:k]
