"""Vectors in fewer bytes: one byte a dimension by ranges fitted on a corpus, or one bit.

The numbers are those of sentence-transformers' `quantize_embeddings`. A query stays in float32: it is compared with
what `dequantize_embeddings` makes of the documents, which costs less quality than to round both sides.
"""

from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from embed.data.vectors import Vectors
from gpt_core.common.errors import InputError

Precision = Literal["float32", "int8", "uint8", "binary", "ubinary"]
Codes = NDArray[np.float32] | NDArray[np.int8] | NDArray[np.uint8]

STEPS = 255  # from end to end; the greatest value has a number of its own


def fit_ranges(vectors: Vectors) -> Vectors:
    """The least and the greatest value of each dimension of a corpus's vectors (n, d), as (2, d) float32.

    Raises:
        InputError: for fewer than two vectors, of which nothing can be fitted.
    """
    if len(vectors) < 2:
        raise InputError(
            f"Ranges for int8 cannot be fitted on {len(vectors)} vectors; expected those of a corpus, or ready ranges."
        )
    return np.stack([vectors.min(axis=0), vectors.max(axis=0)]).astype(np.float32)


def quantize_embeddings(vectors: Vectors, precision: Precision, ranges: Vectors | None = None) -> Codes:
    """Store vectors in fewer bytes.

    Args:
        vectors: (n, d) float32.
        precision: "int8" and "uint8": which of 255 equal steps from the least to the greatest value of its dimension,
            numbered from -128 or from 0; what is beyond the range takes its end. "binary" and "ubinary": one bit a
            dimension, set above 0, eight to a byte (the first dimension in the highest bit), less 128 or not.
        ranges: (2, d) from `fit_ranges`, for int8 and uint8; None fits them on `vectors`.

    Returns:
        (n, d) float32, int8 or uint8, or (n, ⌈d/8⌉) int8 or uint8 of bits.

    Raises:
        InputError: for a precision that there is not, or ranges that do not fit.
    """
    if precision not in get_args(Precision):
        raise InputError(f"precision is {precision!r}; expected one of {', '.join(get_args(Precision))}.")
    if precision == "float32":
        return vectors.astype(np.float32, copy=False)
    if precision in ("binary", "ubinary"):
        bits = np.packbits(vectors > 0, axis=-1)
        return bits if precision == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)
    if ranges is None:
        ranges = fit_ranges(vectors)
    starts, steps = _steps(ranges, vectors.shape[-1])
    codes = np.clip(np.floor((vectors - starts) / steps), 0, STEPS)
    return codes.astype(np.uint8) if precision == "uint8" else (codes - 128).astype(np.int8)


def dequantize_embeddings(
    codes: Codes, precision: Precision, ranges: Vectors | None = None, dimension: int | None = None
) -> Vectors:
    """Float32 vectors (n, d) for `codes`: the middle of each step, or ±1/√d for bits.

    Args:
        codes: what `quantize_embeddings` gave for `precision`.
        precision: which.
        ranges: what they were quantised with, for int8 and uint8.
        dimension: of the vectors, for bits; None: a multiple of eight.

    Raises:
        InputError: for int8 or uint8 without ranges, or ranges that do not fit.
    """
    if precision == "float32":
        return cast(Vectors, codes)
    if precision in ("binary", "ubinary"):
        octets = codes if precision == "ubinary" else codes.astype(np.int16) + 128
        bits = np.unpackbits(octets.astype(np.uint8), axis=-1, count=dimension)
        return ((2 * bits.astype(np.float32) - 1) / np.sqrt(bits.shape[-1])).astype(np.float32)
    if ranges is None:
        raise InputError(
            f"Codes of precision {precision} mean nothing without the ranges they were made with."
        )
    starts, steps = _steps(ranges, codes.shape[-1])
    numbers = codes.astype(np.float32) + (128 if precision == "int8" else 0)
    return starts + (numbers + np.float32(0.5)) * steps


def _steps(ranges: Vectors, dimension: int) -> tuple[Vectors, Vectors]:
    if ranges.shape != (2, dimension):
        raise InputError(f"ranges have the shape {ranges.shape}; expected (2, {dimension}).")
    starts, ends = ranges.astype(np.float32)
    steps = (ends - starts) / np.float32(STEPS)
    return starts, np.where(steps == 0, np.float32(1), steps)
