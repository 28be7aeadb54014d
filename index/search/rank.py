"""Ranking the passages of one state of an index for a query: dense, lexical, or both."""

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
    """The `k` best matches."""
    best = _best(matches.scores, k)
    pairs = zip(matches.numbers[best].tolist(), matches.scores[best].tolist(), strict=True)
    return [Ranked(number, score, None, score) for number, score in pairs]


def rank_dense(view: View, queries: Vectors, k: int, allowed: Numbers | None) -> list[list[Ranked]]:
    """For each of the mapped `queries` (Q, d) the `k` nearest passages, among those `allowed` if that is given."""
    results = []
    for numbers, scores in _nearest(view, queries, k, allowed):
        pairs = zip(numbers.tolist(), scores.tolist(), strict=True)
        results.append([Ranked(number, score, score, None) for number, score in pairs])
    return results


def rank_hybrid(
    view: View, queries: Vectors, matches: list[Matches], k: int, allowed: Numbers | None, fusion: Fusion
) -> list[list[Ranked]]:
    """For each query the `k` best passages by both legs.

    Each leg proposes its best candidates; all of them get exact scores from both legs, and these are combined. With a
    filter, the passages `allowed` are the corpus over which scores are normalised.

    Args:
        view: the vectors.
        queries: (Q, d), mapped.
        matches: Q of them, within `allowed`.
        k: how many passages a query gets.
        allowed: the passages to search; None for all.
        fusion: how scores are combined.
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
    # An exact search among the rows that pass the filter: it finds k if there are k, however few pass.
    results = []
    for query in queries:
        scores = view.score(query, allowed)
        best = _best(scores, k)
        results.append((allowed[best], scores[best]))
    return results


def _best(scores: Scores, k: int) -> Numbers:
    """Places of the `k` highest scores, highest first; of equal ones the earlier first."""
    if k < len(scores):
        least = np.partition(scores, len(scores) - k)[len(scores) - k]
        places = np.flatnonzero(scores >= least)
    else:
        places = np.arange(len(scores))
    return places[np.argsort(-scores[places], kind="stable")][:k]
