"""The dense retriever: exact search over a snapshot, the vectors added since and without those deleted since."""

import sqlite3
from dataclasses import dataclass
from functools import cached_property

import faiss
import numpy as np
import torch

from embed.data.vectors import Vectors
from embed.network.corpus_map import CorpusMap
from index.dense.moments import Moments
from index.dense.scores import Scores, Spread
from index.dense.snapshot import Snapshot, State
from index.store.store import Numbers, Store

# A new snapshot is made once additions and deletions exceed both this number and this share of the old snapshot.
MAX_CHANGES, MAX_CHANGED_SHARE = 1000, 0.25
USUAL_BLAS_THRESHOLD = faiss.cvar.distance_compute_blas_threshold
ROWS_PER_BLOCK = 65536  # rows gathered and scored at once


@dataclass(frozen=True)
class View:
    """All vectors of one state of the store. Immutable, so that any number of threads can search it.

    Attributes:
        base: the snapshot.
        deleted: ids of snapshot passages deleted since, sorted ascending.
        numbers: (t,) int64 ids of the passages added since the snapshot, sorted ascending.
        vectors: (t, d) float32 mapped vectors of these passages.
        state: the state of the store.
        corpus_map: the map to be applied to queries.
    """

    base: Snapshot
    deleted: Numbers
    numbers: Numbers
    vectors: Vectors
    state: State
    corpus_map: CorpusMap

    def __len__(self) -> int:
        return len(self.base.numbers) - len(self.deleted) + len(self.numbers)

    def search(self, queries: Vectors, k: int) -> list[tuple[Numbers, Scores]]:
        """The k nearest passages for each mapped query (Q, d), nearest first; fewer if the view has fewer.

        Returns:
            Q pairs of passage ids (k,) and cosines (k,).
        """
        in_base = min(k + len(self.deleted), len(self.base.numbers))
        scores, rows = nearest(queries, self.base.vectors, in_base)  # (Q, in_base)
        found = self.base.numbers[rows]
        scores = np.where(np.isin(found, self.deleted), -np.inf, scores)
        newer_scores, rows = nearest(queries, self.vectors, min(k, len(self.numbers)))
        found = np.concatenate([found, self.numbers[rows]], axis=1)
        scores = np.concatenate([scores, newer_scores], axis=1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, : min(k, len(self))]
        found, scores = np.take_along_axis(found, best, 1), np.take_along_axis(scores, best, 1)
        return list(zip(found, scores, strict=True))

    def score(self, query: Vectors, numbers: Numbers) -> Scores:
        """Cosines (n,) of a mapped `query` (d,) with the passages of ids `numbers` (n,), all of which must exist."""
        scores = np.empty(len(numbers), dtype=np.float32)
        for start in range(0, len(numbers), ROWS_PER_BLOCK):
            scores[start : start + ROWS_PER_BLOCK] = (
                self.rows(numbers[start : start + ROWS_PER_BLOCK]) @ query
            )
        return scores

    def rows(self, numbers: Numbers) -> Vectors:
        """The mapped vectors (n, d) of the passages with ids `numbers` (n,)."""
        rows = np.empty((len(numbers), self.vectors.shape[1]), dtype=np.float32)
        newer = numbers > self.base.state.sequence
        rows[newer] = self.vectors[np.searchsorted(self.numbers, numbers[newer])]
        rows[~newer] = self.base.vectors[np.searchsorted(self.base.numbers, numbers[~newer])]
        return rows

    def spread(self, query: Vectors) -> Spread:
        """Mean and deviation of a mapped query's (d,) cosines with all passages, from the vectors' moments."""
        if not len(self):
            return Spread(0, 0)
        m, query = self._moments, query.astype(np.float64)
        mean = float(query @ m.total) / m.n
        mean_square = float(query @ m.outer @ query) / m.n
        return Spread(mean, max(mean_square - mean**2, 0) ** 0.5)

    @cached_property
    def _moments(self) -> Moments:
        base_rows = self.base.vectors[np.searchsorted(self.base.numbers, self.deleted)]
        return self.base.moments + Moments.of(self.vectors) - Moments.of(base_rows)

    def merged(self) -> "View":
        """A view of the same vectors, all in one new snapshot."""
        kept = ~np.isin(self.base.numbers, self.deleted)
        numbers = np.concatenate([self.base.numbers[kept], self.numbers])
        vectors = np.concatenate([self.base.vectors[kept], self.vectors])
        return _unchanged(Snapshot.of(numbers, vectors, self.state), self.corpus_map)


def catch_up(view: View | None, store: Store, tx: sqlite3.Connection) -> View:
    """The view of the state that `tx` sees, updated from an earlier view, else the snapshot on disk, else empty."""
    identity, map_hash, sequence = store.settings.identity, store.map_hash(tx), store.sequence(tx)
    state = State(identity, map_hash, sequence)
    if view and view.state == state:
        return view
    if view is None or view.state.map_hash != map_hash:
        no_vectors = np.empty((0, store.corpus_map(tx).apply(_zeros(store)).shape[1]), dtype=np.float32)
        snapshot = Snapshot.load(store.folder, identity, map_hash, sequence)
        snapshot = snapshot or Snapshot.of(np.empty(0, np.int64), no_vectors, State(identity, map_hash, 0))
        view = _unchanged(snapshot, store.corpus_map(tx))

    numbers, vectors = store.vectors_after(tx, view.state.sequence)
    newly_deleted = store.deleted_after(tx, view.state.sequence)
    numbers = np.concatenate([view.numbers, numbers])
    vectors = np.concatenate([view.vectors, view.corpus_map.apply(vectors)])
    kept = ~np.isin(numbers, newly_deleted)
    deleted = np.union1d(view.deleted, np.intersect1d(newly_deleted, view.base.numbers))
    view = View(view.base, deleted, numbers[kept], vectors[kept], state, view.corpus_map)
    if len(view.deleted) + len(view.numbers) > max(MAX_CHANGES, MAX_CHANGED_SHARE * len(view.base.numbers)):
        view = view.merged()
        view.base.save(store.folder)
    return view


def _unchanged(snapshot: Snapshot, corpus_map: CorpusMap) -> View:
    """A view of `snapshot` without additions or deletions."""
    no_ids = np.empty(0, dtype=np.int64)
    return View(snapshot, no_ids, no_ids, snapshot.vectors[:0], snapshot.state, corpus_map)


def _zeros(store: Store) -> Vectors:
    return np.zeros((1, store.settings.dimension), dtype=np.float32)


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
