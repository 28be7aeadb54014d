"""The type of vectors, and vectors of unit length."""

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]


def unit_length(vectors: Vectors) -> Vectors:
    """Each row of `vectors` (n, d) brought to length one; a row of zeros stays zero."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
