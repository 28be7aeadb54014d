"""Figures of answers against scikit-learn and against definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from serve.evaluation.metrics import auroc, coverage

LABELLED = st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=2, max_size=40).filter(
    lambda pairs: len({label for _, label in pairs}) == 2
)


@given(LABELLED)
def test_auroc_is_scikit_learns(pairs):
    scores, labels = np.array([s / 9 for s, _ in pairs]), np.array([label for _, label in pairs])
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))


@given(LABELLED, st.sampled_from([0.5, 0.9, 1.0]))
def test_coverage_is_the_largest_share_with_enough_right_ones(pairs, precision):
    scores, labels = np.array([s / 9 for s, _ in pairs]), np.array([label for _, label in pairs])
    share, threshold = coverage(scores, labels, precision)
    ordered = labels[np.argsort(-scores, kind="stable")]
    good = [n / len(ordered) for n in range(1, len(ordered) + 1) if ordered[:n].mean() >= precision]
    assert share == pytest.approx(max(good, default=0))
    assert threshold == (np.sort(scores)[::-1][round(share * len(ordered)) - 1] if good else 1)
