"""BM25: `scores` and `search` give the same ranking."""

import numpy as np

from embed.data.bm25 import BM25

TEXTS = [
    "Cats sleep most of the day.",
    "The cat slept; the dog did not.",
    "知之为知之，不知为不知，是知也。",
    "12 dogs",
    "",
]
QUERIES = ["sleeping cats", "dog", "不知为", "zebra", "the of", ""]


def test_scores_rank_texts_as_search_does():
    ranker = BM25(TEXTS)
    scores = ranker.scores(QUERIES)
    assert scores.shape == (6, 5)
    assert scores.dtype == np.float32
    places, best = ranker.search(QUERIES, 5)
    np.testing.assert_allclose(best, np.take_along_axis(scores, places, axis=1), rtol=1e-6)
    np.testing.assert_allclose(best, -np.sort(-scores, axis=1), rtol=1e-6)
    np.testing.assert_array_equal(
        scores > 0, np.array([[1, 1, 0, 0, 0], [0, 1, 0, 1, 0], [0, 0, 1, 0, 0], *[[0] * 5] * 3], dtype=bool)
    )
    for one, query in zip(scores, QUERIES, strict=True):
        np.testing.assert_array_equal(ranker.scores([query])[0], one)


def test_texts_without_words_score_zero():
    ranker = BM25(["", "..."])
    assert not ranker.scores(["anything", ""]).any()
    places, scores = ranker.search(["anything"], 2)
    assert sorted(places[0]) == [0, 1]
    assert not scores.any()
