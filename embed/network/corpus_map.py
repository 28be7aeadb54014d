"""Maps fitted on a corpus, for a GPT that was never tuned as an embedder.

Its vectors lie in a narrow cone, and a few dimensions decide every cosine. Taking the mean off and bringing
each dimension ("standardise") or each principal component ("whiten": Su et al. 2021) to the same scale mends
most of that. An index keeps the vectors as the model gives them and applies its map to both sides.
"""

from dataclasses import dataclass

import numpy as np
from safetensors.numpy import load, save

from embed.data.vectors import Vectors, unit_length
from embed.network.config import MapKind

# Whitening raises every variance by this share of their mean: the corpus's smallest variances are mostly noise, and
# dividing by them would let the noise decide. Measured in docs/log.md, 2026-11-22: better than dropping components.
SHRINKAGE = 0.3
# Unit vectors that differ only by float32 rounding vary by about 1e-17 in a dimension.
NO_VARIANCE = 1e-14


@dataclass(frozen=True, eq=False)
class CorpusMap:
    """v → unit((v - mean) · transform); a row of zeros, which is a text without tokens, stays zero.

    Attributes:
        mean: (d,) float32, the corpus's mean; None for the identity.
        transform: (d,) float32, a factor for each dimension, or (d, d') a matrix; None for the identity.
    """

    mean: Vectors | None = None
    transform: Vectors | None = None

    @classmethod
    def fit(cls, kind: MapKind, vectors: Vectors, n_components: int | None = None) -> "CorpusMap":
        """Fit a map of `kind` on a corpus's unit `vectors` (n, d), computing in float64.

        "standardise" divides each dimension by its standard deviation. "whiten" turns the vectors to their principal
        components and divides each by the standard deviation along it, after shrinking the covariance towards a ball
        (`SHRINKAGE`); the first `n_components` are kept (None: all). Where nothing varies, as in a corpus of one
        document, the map is the identity.
        """
        vectors = vectors[np.any(vectors != 0, axis=1)]
        if kind == "none" or len(vectors) < 2:
            return cls()
        mean = vectors.mean(axis=0, dtype=np.float64)
        covariance = np.zeros((len(mean), len(mean)))
        for start in range(0, len(vectors), 16384):  # a float64 copy of a block, never of the corpus
            block = vectors[start : start + 16384] - mean
            covariance += block.T @ block / len(vectors)
        variance = covariance.diagonal()
        if variance.max() < NO_VARIANCE:
            return cls()
        if kind == "standardise":
            transform = np.where(variance < NO_VARIANCE, 0, np.maximum(variance, NO_VARIANCE) ** -0.5)
        else:
            along, axes = np.linalg.eigh(covariance)  # smallest first
            transform = axes * (np.maximum(along, 0) + SHRINKAGE * variance.mean()) ** -0.5
            transform = transform[:, ::-1][:, :n_components]
        return cls(mean.astype(np.float32), np.ascontiguousarray(transform, dtype=np.float32))

    def apply(self, vectors: Vectors) -> Vectors:
        """Map `vectors` (n, d) to (n, d') float32 of unit length; the identity returns them as they are."""
        if self.mean is None or self.transform is None:
            return vectors
        centred = vectors - self.mean
        mapped = centred * self.transform if self.transform.ndim == 1 else centred @ self.transform
        mapped[~np.any(vectors != 0, axis=1)] = 0
        return unit_length(mapped.astype(np.float32, copy=False))

    def to_bytes(self) -> bytes:
        """The map in safetensors' format, exactly."""
        if self.mean is None or self.transform is None:
            return save({})
        return save({"mean": self.mean, "transform": self.transform})

    @classmethod
    def from_bytes(cls, data: bytes) -> "CorpusMap":
        """The map that `to_bytes` wrote."""
        return cls(**load(data))
