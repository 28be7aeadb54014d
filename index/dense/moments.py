"""Mean and covariance of all stored vectors, updated incrementally."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embed.data.vectors import Vectors
from index.dense.scores import Spread


@dataclass(frozen=True)
class Moments:
    """Count n, sum (d,) and sum of outer products (d, d) of vectors, in float64."""

    n: int
    total: NDArray[np.float64]
    outer: NDArray[np.float64]

    @classmethod
    def of(cls, vectors: Vectors) -> "Moments":
        """The moments of `vectors` (n, d)."""
        dimension = vectors.shape[1]
        outer = np.zeros((dimension, dimension))
        for start in range(0, len(vectors), 16384):  # in blocks: no float64 copy of the whole corpus
            block = vectors[start : start + 16384].astype(np.float64)
            outer += block.T @ block
        return cls(len(vectors), vectors.sum(axis=0, dtype=np.float64), outer)

    def spread(self, query: Vectors) -> Spread:
        """Mean and deviation of the products of a `query` (d,) with the vectors."""
        if not self.n:
            return Spread(0, 0)
        query = query.astype(np.float64)
        mean = float(query @ self.total) / self.n
        mean_square = float(query @ self.outer @ query) / self.n
        return Spread(mean, max(mean_square - mean**2, 0) ** 0.5)

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.n + other.n, self.total + other.total, self.outer + other.outer)

    def __neg__(self) -> "Moments":
        return Moments(-self.n, -self.total, -self.outer)
