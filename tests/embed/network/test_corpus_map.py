"""Corpus maps (standardise, whiten, half-whiten): statistics of the mapped vectors, and edge cases."""

import numpy as np
import pytest

from embed.data.vectors import unit_length
from embed.network.corpus_map import PRIOR_DOCUMENTS, SHRINKAGE, CorpusMap


def corpus(n: int, d: int = 24, seed: int = 0) -> np.ndarray:
    """Nearly parallel, correlated unit vectors with a few dominant dimensions, like those of an untuned GPT."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(d, d)) * np.geomspace(10, 0.1, d)
    return unit_length((5 * rng.normal(size=d) + 0.3 * rng.normal(size=(n, d)) @ mixing).astype(np.float32))


def map_without_normalising(fitted: CorpusMap, vectors: np.ndarray) -> np.ndarray:
    centred = vectors - fitted.mean
    return centred * fitted.transform if fitted.transform.ndim == 1 else centred @ fitted.transform


def test_none_is_the_identity():
    vectors = corpus(10)
    assert CorpusMap.fit("none", vectors).apply(vectors) is vectors


def test_standardise_gives_every_dimension_mean_0_and_deviation_1():
    vectors = corpus(2000)
    mapped = map_without_normalising(CorpusMap.fit("standardise", vectors), vectors)
    np.testing.assert_allclose(mapped.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(mapped.std(axis=0), 1, atol=1e-3)


def test_whiten_decorrelates_and_shrinks_weak_components():
    vectors = corpus(2000)
    mapped = map_without_normalising(CorpusMap.fit("whiten", vectors), vectors)
    variance = np.linalg.eigvalsh(np.cov(vectors.T.astype(np.float64), bias=True))[::-1]
    # 1 along strong components, less along weak ones
    wanted = variance / (variance + SHRINKAGE * variance.mean())
    np.testing.assert_allclose(np.cov(mapped.T, bias=True), np.diag(wanted), atol=2e-3)
    assert wanted[0] > 0.95
    assert wanted[-1] < 0.5


def test_half_whitening_is_the_fourth_root_of_the_inverse_second_moment():
    vectors = corpus(2000).astype(np.float64)
    fitted = CorpusMap.fit("half-whiten", vectors)
    assert not fitted.mean.any()
    moment = vectors.T @ vectors / len(vectors)
    moment += PRIOR_DOCUMENTS / len(vectors) * np.trace(moment) / len(moment) * np.eye(len(moment))
    product = fitted.transform.astype(np.float64) @ fitted.transform.T  # moment^-½
    np.testing.assert_allclose(product @ moment @ product, np.eye(len(moment)), atol=1e-3)
    small = CorpusMap.fit("half-whiten", vectors[:3])  # nearly the prior: cosines change little
    cosines = vectors[3:9] @ vectors[3:9].T
    mapped = small.apply(vectors[3:9].astype(np.float32))
    assert np.abs(mapped @ mapped.T - cosines).max() < 0.1


def test_map_components_keeps_the_first_components_of_the_full_whitening():
    vectors = corpus(200)
    mapped = map_without_normalising(CorpusMap.fit("whiten", vectors, 8), vectors)
    assert mapped.shape == (200, 8)
    whole = map_without_normalising(CorpusMap.fit("whiten", vectors), vectors)
    np.testing.assert_allclose(whole[:, :8], mapped, atol=1e-4)


@pytest.mark.parametrize("kind", ["none", "standardise", "whiten", "half-whiten"])
def test_results_are_unit_float32_and_serialisation_is_bit_exact(kind):
    vectors = corpus(50)
    fitted = CorpusMap.fit(kind, vectors, 8)
    mapped = fitted.apply(vectors)
    assert mapped.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(mapped, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(CorpusMap.from_bytes(fitted.to_bytes()).apply(vectors), mapped)


@pytest.mark.parametrize("kind", ["standardise", "whiten", "half-whiten"])
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


def test_whitening_a_corpus_smaller_than_the_dimension_gives_bounded_vectors():
    vectors = corpus(5)  # spans four of 24 dimensions
    fitted = CorpusMap.fit("whiten", vectors)
    queries = corpus(100, seed=1)
    assert np.isfinite(fitted.apply(queries)).all()
    strongest = np.linalg.norm(map_without_normalising(fitted, vectors), axis=1).max()
    assert np.linalg.norm(map_without_normalising(fitted, queries), axis=1).max() < 100 * strongest


def test_a_constant_dimension_is_not_amplified():
    vectors = corpus(100)
    vectors[:, 3] = 0.25
    for kind in ("standardise", "whiten"):
        fitted = CorpusMap.fit(kind, vectors)
        other = vectors.copy()
        other[:, 3] += 1e-4
        np.testing.assert_allclose(fitted.apply(other), fitted.apply(vectors), atol=1e-3)
