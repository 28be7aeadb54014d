"""Corpus maps: what they promise about the corpus they were fitted on."""

import numpy as np
import pytest

from embed.maps import CorpusMap, unit_length


def corpus(n: int, d: int = 24, seed: int = 0) -> np.ndarray:
    """Unit vectors in a narrow cone, correlated, with a few strong dimensions: as an untuned GPT's are."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(d, d)) * np.geomspace(10, 0.1, d)
    return unit_length((5 * rng.normal(size=d) + 0.3 * rng.normal(size=(n, d)) @ mixing).astype(np.float32))


def before_length(fitted: CorpusMap, vectors: np.ndarray) -> np.ndarray:
    centred = vectors - fitted.mean
    return centred * fitted.transform if fitted.transform.ndim == 1 else centred @ fitted.transform


def test_none_is_the_identity():
    vectors = corpus(10)
    assert CorpusMap.fit("none", vectors).apply(vectors) is vectors


def test_standardise_gives_every_dimension_mean_0_and_deviation_1():
    vectors = corpus(2000)
    mapped = before_length(CorpusMap.fit("standardise", vectors), vectors)
    np.testing.assert_allclose(mapped.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(mapped.std(axis=0), 1, atol=1e-3)


def test_whiten_decorrelates_and_keeps_the_first_components():
    vectors = corpus(2000)
    mapped = before_length(CorpusMap.fit("whiten", vectors, 8), vectors)
    assert mapped.shape == (2000, 8)
    np.testing.assert_allclose(np.cov(mapped.T), np.eye(8), atol=2e-3)
    whole = before_length(CorpusMap.fit("whiten", vectors), vectors)
    np.testing.assert_allclose(np.abs(whole[:, :8]), np.abs(mapped), atol=1e-4)


@pytest.mark.parametrize("kind", ["none", "standardise", "whiten"])
def test_results_are_unit_float32_and_survive_bytes_bit_for_bit(kind):
    vectors = corpus(50)
    fitted = CorpusMap.fit(kind, vectors, 8)
    mapped = fitted.apply(vectors)
    assert mapped.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(mapped, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(CorpusMap.from_bytes(fitted.to_bytes()).apply(vectors), mapped)


@pytest.mark.parametrize("kind", ["standardise", "whiten"])
def test_a_vector_of_zeros_stays_zero_and_is_not_fitted_on(kind):
    vectors = corpus(50)
    with_empty = np.vstack([vectors, np.zeros((3, 24), np.float32)])
    fitted = CorpusMap.fit(kind, with_empty)
    np.testing.assert_array_equal(fitted.mean, CorpusMap.fit(kind, vectors).mean)
    assert not fitted.apply(with_empty)[50:].any()


@pytest.mark.parametrize("kind", ["standardise", "whiten"])
@pytest.mark.parametrize("n", [0, 1, 5])
def test_a_corpus_that_does_not_vary_gives_the_identity(kind, n):
    vectors = np.repeat(corpus(1), n, axis=0)
    assert CorpusMap.fit(kind, vectors).apply(vectors) is vectors


def test_fewer_documents_than_components_whiten_what_varies():
    vectors = corpus(5)
    mapped = CorpusMap.fit("whiten", vectors, 16).apply(vectors)
    assert mapped.shape == (5, 4)  # five points span four dimensions
    assert np.isfinite(mapped).all()


def test_a_dead_dimension_is_dropped_not_blown_up():
    vectors = corpus(100)
    vectors[:, 3] = 0.25
    for kind in ("standardise", "whiten"):
        fitted = CorpusMap.fit(kind, vectors)
        other = vectors.copy()
        other[:, 3] += 1e-4
        np.testing.assert_allclose(fitted.apply(other), fitted.apply(vectors), atol=1e-4)
