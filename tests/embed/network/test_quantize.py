"""Quantised vectors, compared with sentence-transformers."""

import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sentence_transformers.util.quantization import quantize_embeddings as theirs

from embed.network.quantize import dequantize_embeddings, fit_ranges, quantize_embeddings
from gpt_core.common.errors import InputError

PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")
# sentence-transformers overflows for ranges near zero
VALUES = st.integers(-1000, 1000).map(lambda n: n / 1000)


@pytest.mark.parametrize("precision", PRECISIONS)
@given(vectors=arrays(np.float32, st.tuples(st.integers(2, 9), st.integers(1, 21)), elements=VALUES))
def test_quantised_values_equal_sentence_transformers(precision, vectors):
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    ours, expected = quantize_embeddings(vectors, precision), theirs(vectors, precision)
    assert ours.dtype == expected.dtype
    np.testing.assert_array_equal(ours, expected)
    fitted = fit_ranges(vectors[: len(vectors) // 2 + 1])
    expected = theirs(vectors, precision, ranges=fitted)
    np.testing.assert_array_equal(quantize_embeddings(vectors, precision, fitted), expected)


@pytest.mark.parametrize("precision", ["int8", "uint8"])
@given(vectors=arrays(np.float32, st.tuples(st.integers(2, 9), st.integers(1, 9)), elements=VALUES))
def test_int8_round_trip_error_is_at_most_half_a_step(precision, vectors):
    ranges = fit_ranges(vectors)
    back = dequantize_embeddings(quantize_embeddings(vectors, precision, ranges), precision, ranges)
    span = ranges[1] - ranges[0]
    assert back.dtype == np.float32
    step = np.where(span == 0, 1, span / 255)  # the step of a constant dimension is arbitrary
    assert (np.abs(back - vectors) <= step * 0.5 + 1e-6 * (1 + span)).all()


@pytest.mark.parametrize("precision", ["binary", "ubinary"])
def test_binary_round_trip_gives_signs_at_unit_length(precision):
    vectors = np.random.default_rng(0).standard_normal((5, 21)).astype(np.float32)
    back = dequantize_embeddings(quantize_embeddings(vectors, precision), precision, dimension=21)
    np.testing.assert_array_equal(np.sign(back), np.sign(vectors))
    np.testing.assert_allclose(np.linalg.norm(back, axis=1), 1, atol=1e-6)


def test_int8_documents_rank_nearly_as_float32_documents():
    rng = np.random.default_rng(0)
    documents = rng.standard_normal((2000, 64)).astype(np.float32)
    documents /= np.linalg.norm(documents, axis=1, keepdims=True)
    queries = documents[:50] + 0.1 * rng.standard_normal((50, 64)).astype(np.float32)
    ranges = fit_ranges(documents)
    stored = dequantize_embeddings(quantize_embeddings(documents, "int8", ranges), "int8", ranges)
    top = np.argsort(-queries @ documents.T, axis=1)[:, :10]
    top_stored = np.argsort(-queries @ stored.T, axis=1)[:, :10]
    kept = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(top, top_stored, strict=True)])
    assert kept > 0.95


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda v: quantize_embeddings(v, "int4"), "'int4'.*float32, int8, uint8, binary, ubinary"),
        (lambda v: quantize_embeddings(v[:1], "int8"), "1 vectors"),
        (
            lambda v: quantize_embeddings(v, "uint8", np.zeros((2, 4), np.float32)),
            r"\(2, 4\); expected \(2, 3\)",
        ),
        (lambda v: dequantize_embeddings(v.astype(np.int8), "int8"), "without the ranges"),
    ],
)
def test_invalid_arguments_are_refused(call, said):
    with pytest.raises(InputError, match=said):
        call(np.zeros((5, 3), dtype=np.float32))
