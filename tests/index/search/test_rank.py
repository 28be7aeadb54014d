import numpy as np
import pytest

from embed.network.config import Fusion
from index.dense.scores import Spread
from index.search import rank

DENSE = np.array([0.9, 0.1, 0.5, 0.5], dtype=np.float32)
LEXICAL = np.array([0.0, 8.0, 4.0, 0.0], dtype=np.float32)
NONE = Spread(0, 0)


def fuse(*arguments):
    """The fused scores."""
    dense, lexical = rank.fuse(*arguments)
    return dense.shares + lexical.shares


def test_tm2c2_by_hand():
    scores = fuse(Fusion("tm2c2", 0.8), DENSE, LEXICAL, NONE, NONE)
    np.testing.assert_allclose(scores, [0.76, 0.44 + 0.2, 0.6 + 0.1, 0.6], rtol=1e-6)


def test_z_by_hand():
    scores = fuse(Fusion("z", 0.7), DENSE, LEXICAL, Spread(0.1, 0.2), Spread(1, 2))
    np.testing.assert_allclose(scores, 0.7 * (DENSE - 0.1) / 0.2 + 0.3 * (LEXICAL - 1) / 2, rtol=1e-5)


def test_rrf_by_hand_and_a_passage_without_query_terms_has_no_lexical_rank():
    scores = fuse(Fusion("rrf", k=60), DENSE, LEXICAL, NONE, NONE)
    np.testing.assert_allclose(scores, [1 / 61, 1 / 64 + 1 / 61, 1 / 62 + 1 / 62, 1 / 63], rtol=1e-6)


@pytest.mark.parametrize("kind", ["tm2c2", "z"])
def test_a_retriever_with_equal_scores_does_not_change_the_order(kind):
    nothing = np.zeros(4, dtype=np.float32)
    for dense, lexical, order in ((DENSE, nothing, DENSE), (nothing, LEXICAL, LEXICAL)):
        scores = fuse(Fusion(kind, 0.5), dense, lexical, Spread(0, 0), Spread(0, 0))
        assert (np.argsort(-scores, kind="stable") == np.argsort(-order, kind="stable")).all()


@pytest.mark.parametrize("kind", ["tm2c2", "z", "rrf"])
def test_words_that_are_in_every_passage_have_no_influence(kind):
    lexical = np.array(
        [0.8e-6, 1.7e-6, 1.2e-6, 0.9e-6], dtype=np.float32
    )  # FTS5's IDF for such words is 1e-6
    scores = fuse(Fusion(kind, 0.5), DENSE, lexical, Spread(0.1, 0.2), Spread.of(lexical))
    assert (np.argsort(-scores, kind="stable") == np.argsort(-DENSE, kind="stable")).all()


def test_no_candidates():
    none = np.empty(0, dtype=np.float32)
    for kind in ("tm2c2", "z", "rrf"):
        assert fuse(Fusion(kind), none, none, NONE, NONE).shape == (0,)
