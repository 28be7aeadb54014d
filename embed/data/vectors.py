"""The type of embedding vectors, and their normalisation."""

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]


def unit_length(vectors: Vectors) -> Vectors:
    """Normalise each of `vectors` (n, d) to unit length; a zero vector stays zero."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
