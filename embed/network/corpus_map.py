"""Standardisation and whitening fitted on a corpus.

Vectors of a GPT that was not tuned as an embedder are nearly parallel, and a few dimensions dominate every cosine.
Subtracting the mean and rescaling each dimension ("standardise") or each principal component ("whiten": Su et al. 2021)
fixes most of it. A tuned embedder gains from half of a whitening: what most texts of the corpus have in common counts
less, as a frequent word does by its IDF. An index stores the model's vectors unmapped and applies its map to queries
and documents when it searches.
"""

from dataclasses import dataclass

import numpy as np
from safetensors.numpy import load, save

from embed.data.vectors import Vectors, unit_length
from embed.network.config import MapKind

# Whitening adds this fraction of the mean variance to every variance: the smallest variances are mostly noise, and
# dividing by them would amplify it. Measured in docs/log.md, 2026-11-22: better than dropping components.
SHRINKAGE = 0.3
# Half of a whitening is fitted as if the corpus had this many documents more, of equal variance in all directions.
# Measured in docs/log.md, 2026-11-30, "A table, half whitened".
PRIOR_DOCUMENTS = 200
# A smaller variance counts as zero: float32 rounding of equal unit vectors gives about 1e-17 per dimension.
NO_VARIANCE = 1e-14


@dataclass(frozen=True, eq=False)
class CorpusMap:
    """v → normalise((v - mean) · transform); a zero vector (a text without tokens) stays zero.

    Attributes:
        mean: (d,) float32 mean of the corpus; None for the identity map.
        transform: (d,) float32 factors per dimension, or a (d, d') float32 matrix; None for the identity map.
    """

    mean: Vectors | None = None
    transform: Vectors | None = None

    @classmethod
    def fit(cls, kind: MapKind, vectors: Vectors, n_components: int | None = None) -> "CorpusMap":
        """Fit a map of `kind` on a corpus's unit `vectors` (n, d); computed in float64.

        "standardise" divides each dimension by its standard deviation. "whiten" projects onto the principal components
        and divides each by its standard deviation, after shrinking the covariance towards a multiple of the identity
        matrix (`SHRINKAGE`); the first `n_components` are kept (None: all). "half-whiten" divides each by the square
        root of its standard deviation, measured from zero: no mean is subtracted. Without variance, as in a corpus of
        one document, the result is the identity map.
        """
        vectors = vectors[np.any(vectors != 0, axis=1)]
        if kind == "none" or len(vectors) < 2:
            return cls()
        half = kind == "half-whiten"
        mean = np.zeros(vectors.shape[1]) if half else vectors.mean(axis=0, dtype=np.float64)
        covariance = np.zeros((len(mean), len(mean)))
        for start in range(
            0, len(vectors), 16384
        ):  # by blocks: a float64 copy of the corpus may not fit into memory
            block = vectors[start : start + 16384] - mean
            covariance += block.T @ block / len(vectors)
        variance = covariance.diagonal()
        if variance.max() < NO_VARIANCE:
            return cls()
        if kind == "standardise":
            transform = np.where(variance < NO_VARIANCE, 0, np.maximum(variance, NO_VARIANCE) ** -0.5)
        else:
            eigenvalues, axes = np.linalg.eigh(covariance)  # ascending eigenvalues
            shrinkage, power = (PRIOR_DOCUMENTS / len(vectors), -0.25) if half else (SHRINKAGE, -0.5)
            transform = axes * (np.maximum(eigenvalues, 0) + shrinkage * variance.mean()) ** power
            transform = transform[:, ::-1][:, :n_components]
        return cls(mean.astype(np.float32), np.ascontiguousarray(transform, dtype=np.float32))

    def apply(self, vectors: Vectors) -> Vectors:
        """Map `vectors` (n, d) to (n, d') float32 of unit length; the identity map returns `vectors` unchanged."""
        if self.mean is None or self.transform is None:
            return vectors
        centred = vectors - self.mean
        mapped = centred * self.transform if self.transform.ndim == 1 else centred @ self.transform
        mapped[~np.any(vectors != 0, axis=1)] = 0
        return unit_length(mapped.astype(np.float32, copy=False))

    def to_bytes(self) -> bytes:
        """The map in safetensors' format, without loss."""
        if self.mean is None or self.transform is None:
            return save({})
        return save({"mean": self.mean, "transform": self.transform})

    @classmethod
    def from_bytes(cls, data: bytes) -> "CorpusMap":
        """The map that `to_bytes` wrote."""
        return cls(**load(data))
