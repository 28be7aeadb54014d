"""Exact nearest-neighbour search over vectors in memory."""

import faiss
import torch

from embed.data.vectors import Vectors
from index.store.store import Numbers

USUAL_BLAS_THRESHOLD = faiss.cvar.distance_compute_blas_threshold


def nearest(queries: Vectors, vectors: Vectors, k: int) -> tuple[Vectors, Numbers]:
    """Exact inner-product search.

    Args:
        queries: (Q, d).
        vectors: (n, d), contiguous.
        k: at most n.

    Returns:
        Scores (Q, k) float32, highest first, and the matching rows of `vectors` (Q, k) int64.
    """
    # FAISS stores this setting per thread, and a new thread defaults to all processors.
    faiss.omp_set_num_threads(torch.get_num_threads())
    # BLAS is many times faster for a batch and slower for a single query; FAISS's default uses it for hundreds only.
    faiss.cvar.distance_compute_blas_threshold = 1 if len(queries) >= 8 else USUAL_BLAS_THRESHOLD
    return faiss.knn(queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)
