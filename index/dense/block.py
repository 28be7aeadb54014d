"""A block of passages' vectors, and exact search in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from embed.data.vectors import Vectors
from index.dense.moments import Moments
from index.dense.scores import Scores
from index.store.store import Numbers

# isort: split
# Import faiss after torch: then both share the settings of one OpenMP runtime; otherwise each has its own threads.
import faiss

# BLAS is many times faster for a batch and several times slower for a single query. FAISS never uses BLAS with an
# IDSelector; without one it decides by this variable, which is the process's. So the variable is set once, to BLAS
# always, and `nearest` decides for each call.
faiss.cvar.distance_compute_blas_threshold = 1
QUERIES_FOR_BLAS = 8


@dataclass(frozen=True, eq=False)
class Block:
    """Vectors of passages; immutable.

    Attributes:
        numbers: (n,) int64 passage ids, sorted ascending.
        vectors: (n, d) float32 mapped vectors, contiguous.
    """

    numbers: Numbers
    vectors: Vectors

    def __len__(self) -> int:
        return len(self.numbers)

    @classmethod
    def joined(cls, blocks: Sequence["Block"]) -> "Block":
        """One block of several, whose ids ascend from block to block."""
        numbers = np.concatenate([block.numbers for block in blocks])
        return cls(numbers, np.concatenate([block.vectors for block in blocks]))

    @cached_property
    def moments(self) -> Moments:
        """The moments of all vectors."""
        return Moments.of(self.vectors)

    def after(self, sequence: int) -> "Block":
        """A copy of the passages with ids above `sequence`; a view of the arrays would keep all of them in memory."""
        first = np.searchsorted(self.numbers, sequence, side="right")
        return Block(self.numbers[first:].copy(), self.vectors[first:].copy())

    def rows_of(self, numbers: Numbers) -> Numbers:
        """The rows (m,), sorted ascending, of those of the sorted ids `numbers` that are in this block."""
        rows = np.searchsorted(self.numbers, numbers)
        inside = rows < len(self)
        rows = rows[inside]
        return rows[self.numbers[rows] == numbers[inside]]

    def search(self, queries: Vectors, k: int, deleted: Numbers) -> tuple[Scores, Numbers]:
        """Exact inner-product search.

        Args:
            queries: (Q, d).
            k: number of passages for each query; all that are left if the block has fewer.
            deleted: rows (m,) that are not to be found.

        Returns:
            Scores (Q, k) float32, highest first, and rows (Q, k).
        """
        k = min(k, len(self) - len(deleted))
        live = np.ones(len(self), dtype=bool)
        live[deleted] = False
        if len(queries) < QUERIES_FOR_BLAS:
            return nearest(queries, self.vectors, k, live)
        # Usually few of the best rows are deleted. Where more are, the query is searched again among the others.
        n_extra = min(k // 2 + 8, len(deleted))
        scores, rows = nearest(queries, self.vectors, k + n_extra, None)
        if len(deleted):
            live_first = np.argsort(~live[rows], axis=1, kind="stable")[:, :k]
            lacking = live[rows].sum(axis=1) < k
            scores = np.take_along_axis(scores, live_first, 1)
            rows = np.take_along_axis(rows, live_first, 1)
            if lacking.any():
                scores[lacking], rows[lacking] = nearest(queries[lacking], self.vectors, k, live)
        return scores, rows

    def score(self, queries: Vectors, rows: Numbers) -> Scores:
        """Inner products (Q, m) of each query (Q, d) with its rows (Q, m); -inf for the row -1."""
        set_threads()
        queries, rows = np.ascontiguousarray(queries), np.ascontiguousarray(rows)
        scores = np.empty(rows.shape, np.float32)
        pointers = [faiss.swig_ptr(array) for array in (scores, queries, self.vectors, rows)]
        faiss.fvec_inner_products_by_idx(*pointers, queries.shape[1], *rows.shape)  # type: ignore[attr-defined]
        scores[rows < 0] = -np.inf
        return scores


def set_threads() -> None:
    """Make FAISS use PyTorch's number of threads: it has a setting for each thread, by default all processors."""
    faiss.omp_set_num_threads(torch.get_num_threads())


def nearest(queries: Vectors, vectors: Vectors, k: int, live: Any) -> tuple[Scores, Numbers]:
    """The scores (Q, k) and rows (Q, k) of the best of the `vectors` that are `live` (n,); None for all, with BLAS."""
    set_threads()
    queries, vectors = np.ascontiguousarray(queries), np.ascontiguousarray(vectors)
    scores, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    if not rows.size:
        return scores, rows
    bits = None if live is None else np.packbits(live, bitorder="little")
    selector = None if bits is None else faiss.IDSelectorBitmap(len(live), faiss.swig_ptr(bits))
    faiss.knn_inner_product(
        faiss.swig_ptr(queries),
        faiss.swig_ptr(vectors),
        vectors.shape[1],
        len(queries),
        len(vectors),
        k,
        faiss.swig_ptr(scores),
        faiss.swig_ptr(rows),
        selector,
    )
    return scores, rows
