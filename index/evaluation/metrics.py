"""Retrieval metrics by ir-measures, and confidence intervals of differences between systems."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gpt_core.common.extras import extra
from index.evaluation.collection import Collection, Run

METRICS = ("nDCG@10", "Recall@100", "MRR@10")
RESAMPLES = 10_000
RESAMPLES_PER_BLOCK = 256

Figures = NDArray[np.float64]


def score_queries(collection: Collection, run: Run) -> Figures:
    """nDCG@10 (linear gains, as trec_eval), Recall@100 and MRR@10 per query: (Q, 3); 0 for queries without results."""
    with extra("eval"):
        import ir_measures
    measures = [ir_measures.nDCG @ 10, ir_measures.R @ 100, ir_measures.RR @ 10]
    rows = {name: i for i, name in enumerate(collection.queries)}
    figures = np.zeros((len(rows), len(measures)))
    for metric in ir_measures.iter_calc(measures, collection.qrels, run):
        figures[rows[metric.query_id], measures.index(metric.measure)] = metric.value
    return figures


def score(collection: Collection, run: Run) -> dict[str, float]:
    """The means of `score_queries` over the collection's queries, by metric name."""
    return dict(zip(METRICS, score_queries(collection, run).mean(axis=0).tolist(), strict=True))


def bootstrap(differences: Sequence[Figures], seed: int = 0) -> list[tuple[float, float]]:
    """95 % confidence intervals of mean differences between systems: paired percentile bootstrap over queries.

    The queries are drawn with replacement `RESAMPLES` times, with the same draws for every comparison.

    Args:
        differences: per comparison the differences (Q,) of two systems' figures, one per query.
        seed: random seed of the draws.

    Returns:
        The lower and the upper bound of each comparison.
    """
    if not differences:
        return []
    columns = np.stack(differences, axis=1)  # (Q, n)
    n_queries = len(columns)
    rng, means = np.random.default_rng(seed), []
    for start in range(0, RESAMPLES, RESAMPLES_PER_BLOCK):
        n = min(RESAMPLES_PER_BLOCK, RESAMPLES - start)
        drawn = rng.integers(n_queries, size=(n, n_queries)) + n_queries * np.arange(n)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=n * n_queries).reshape(n, n_queries)
        means.append(counts @ columns / n_queries)
    low, high = np.percentile(np.concatenate(means), (2.5, 97.5), axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))
