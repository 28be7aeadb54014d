"""Retrieval metrics, and bootstrap intervals of their differences."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from index.evaluation.collection import Collection
from index.evaluation.metrics import bootstrap, score, score_queries
from index.reading.document import Document

DIFFERENCES = arrays(np.float64, st.integers(2, 40), elements=st.integers(-8, 8).map(lambda n: n / 8))


def collection() -> Collection:
    """Six queries, each with a good document and a fair one."""
    documents = {name: Document(name, name) for i in range(6) for name in (f"good{i}", f"fair{i}")}
    qrels = {f"q{i}": {f"good{i}": 2, f"fair{i}": 1} for i in range(6)}
    return Collection("six", "test", documents, {query: query for query in qrels}, qrels)


def test_metrics_by_hand():
    # four queries found nothing
    run = {
        "q0": {"fair0": 3.0, "good1": 2.0, "good0": 1.0},
        "q1": {"fair0": 1.0},
    }
    figures = score(collection(), run)
    best = 2 + 1 / math.log2(3)
    assert figures["nDCG@10"] == pytest.approx((1 + 2 / math.log2(4)) / best / 6)
    assert figures["Recall@100"] == pytest.approx(1 / 6)
    assert figures["MRR@10"] == pytest.approx(1 / 6)
    by_query = score_queries(collection(), run)
    assert by_query.shape == (6, 3)
    assert not by_query[1:].any()
    assert dict(zip(figures, by_query.mean(axis=0), strict=True)) == pytest.approx(figures)


def test_no_results_at_all_score_zero():
    assert json.dumps(score(collection(), {})) == json.dumps(
        {"nDCG@10": 0.0, "Recall@100": 0.0, "MRR@10": 0.0}
    )


def test_intervals_are_those_of_scipy():
    rng = np.random.default_rng(1)
    skewed, spread = rng.exponential(size=150) - 0.8, rng.normal(0.1, 1, size=150)
    for values, (low, high) in zip((skewed, spread), bootstrap([skewed, spread]), strict=True):
        theirs = stats.bootstrap((values,), np.mean, n_resamples=9999, method="percentile", rng=2)
        expected = theirs.confidence_interval
        # with 10,000 resamples the ends vary by about 1/50 of the interval
        assert (low, high) == pytest.approx(expected, abs=(expected.high - expected.low) / 25)


@settings(max_examples=20)
@given(DIFFERENCES, st.integers(0, 3))
def test_an_interval_lies_within_the_values_and_flips_with_their_sign(values, seed):
    ours, theirs = bootstrap([values, -values], seed)
    assert values.min() - 1e-12 <= ours[0] <= ours[1] <= values.max() + 1e-12
    assert theirs == pytest.approx((-ours[1], -ours[0]))
    assert bootstrap([values], seed) == [pytest.approx(ours)]  # independent of the other samples


def test_a_constant_difference_gives_an_interval_of_width_zero():
    assert bootstrap([np.full(9, 0.25)]) == [(0.25, 0.25)]
    assert bootstrap([]) == []
