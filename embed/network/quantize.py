"""Quantisation of vectors: 8 bits per dimension with ranges fitted on a corpus, or 1 bit per dimension.

The codes equal those of sentence-transformers' `quantize_embeddings`. Queries stay in float32 and are compared with
the output of `dequantize_embeddings`, which loses less quality than quantising both sides.
"""

from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from embed.data.vectors import Vectors
from gpt_core.common.errors import InputError

Precision = Literal["float32", "int8", "uint8", "binary", "ubinary"]
Codes = NDArray[np.float32] | NDArray[np.int8] | NDArray[np.uint8]

QUANTIZATION_STEPS = (
    255  # equal steps from minimum to maximum; the maximum itself gets code 255 (of 0 to 255)
)


def fit_ranges(vectors: Vectors) -> Vectors:
    """Minimum and maximum of each dimension of a corpus's vectors (n, d), as (2, d) float32.

    Raises:
        InputError: for fewer than two vectors.
    """
    if len(vectors) < 2:
        raise InputError(
            f"Ranges for int8 cannot be fitted on {len(vectors)} vectors; expected at least two, or give ranges."
        )
    return np.stack([vectors.min(axis=0), vectors.max(axis=0)]).astype(np.float32)


def quantize_embeddings(vectors: Vectors, precision: Precision, ranges: Vectors | None = None) -> Codes:
    """Quantise vectors.

    Args:
        vectors: (n, d) float32.
        precision: "int8" and "uint8": the index of the value's step, of 255 equal steps between the minimum and maximum
            of its dimension, starting at -128 or 0; values outside the range are clipped. "binary" and "ubinary": one
            bit per dimension, set for values above 0, packed eight to a byte (the first dimension in the highest bit);
            "binary" subtracts 128 from each byte.
        ranges: (2, d) from `fit_ranges`, for int8 and uint8; None fits them on `vectors`.

    Returns:
        (n, d) float32, int8 or uint8, or (n, ⌈d/8⌉) int8 (binary) or uint8 (ubinary).

    Raises:
        InputError: for an unknown precision, or ranges of the wrong shape.
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
    codes = np.clip(np.floor((vectors - starts) / steps), 0, QUANTIZATION_STEPS)
    return codes.astype(np.uint8) if precision == "uint8" else (codes - 128).astype(np.int8)


def dequantize_embeddings(
    codes: Codes, precision: Precision, ranges: Vectors | None = None, dimension: int | None = None
) -> Vectors:
    """Float32 vectors (n, d) for `codes`: the middle of each step, or ±1/√d for bits.

    Args:
        codes: the output of `quantize_embeddings` for `precision`.
        precision: the precision of `codes`.
        ranges: the (2, d) ranges used for quantising, for int8 and uint8.
        dimension: d, for binary and ubinary; None: 8 × bytes per vector.

    Raises:
        InputError: for int8 or uint8 without ranges, or ranges of the wrong shape.
    """
    if precision == "float32":
        return cast(Vectors, codes)
    if precision in ("binary", "ubinary"):
        octets = codes if precision == "ubinary" else codes.astype(np.int16) + 128
        bits = np.unpackbits(octets.astype(np.uint8), axis=-1, count=dimension)
        return ((2 * bits.astype(np.float32) - 1) / np.sqrt(bits.shape[-1])).astype(np.float32)
    if ranges is None:
        raise InputError(
            f"Codes of precision {precision} cannot be decoded without the ranges they were made with; give ranges."
        )
    starts, steps = _steps(ranges, codes.shape[-1])
    numbers = codes.astype(np.float32) + (128 if precision == "int8" else 0)
    return starts + (numbers + np.float32(0.5)) * steps


def _steps(ranges: Vectors, dimension: int) -> tuple[Vectors, Vectors]:
    if ranges.shape != (2, dimension):
        raise InputError(f"ranges have the shape {ranges.shape}; expected (2, {dimension}).")
    starts, ends = ranges.astype(np.float32)
    steps = (ends - starts) / np.float32(QUANTIZATION_STEPS)
    return starts, np.where(steps == 0, np.float32(1), steps)
