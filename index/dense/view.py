"""The dense leg: a snapshot, the rows that are newer than it, and the deleted ones, searched exactly as one."""

import sqlite3
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from embed.data.vectors import Vectors
from embed.network.corpus_map import CorpusMap
from index.dense.exact import nearest
from index.dense.moments import Moments
from index.dense.scores import Scores, Spread
from index.dense.snapshot import Snapshot, State
from index.store.store import Numbers, Store

# How many rows may be newer than the snapshot, or deleted since, before a new one is made: so many, or this share.
MOST_CHANGES, MOST_SHARE = 1000, 0.25
BLOCK = 65536  # rows that are gathered at once


@dataclass(frozen=True)
class View:
    """All vectors of one state of the store. Never changed, so that any number of threads can search it.

    Attributes:
        base: the snapshot that it builds on.
        dead: numbers of the snapshot's passages that are deleted, rising.
        numbers: (t,) those of the passages that are newer than the snapshot, rising.
        vectors: (t, d) theirs, mapped.
        state: which state of the store it is.
        corpus_map: to be applied to a query.
    """

    base: Snapshot
    dead: Numbers
    numbers: Numbers
    vectors: Vectors
    state: State
    corpus_map: CorpusMap

    def __len__(self) -> int:
        return len(self.base.numbers) - len(self.dead) + len(self.numbers)

    def search(self, queries: Vectors, k: int) -> list[tuple[Numbers, Scores]]:
        """For each of the mapped `queries` (Q, d) the k nearest passages (all, if there are fewer), nearest first.

        Returns:
            Q pairs of numbers (k,) and cosines (k,).
        """
        in_base = min(k + len(self.dead), len(self.base.numbers))
        scores, rows = nearest(queries, self.base.vectors, in_base)  # (Q, in_base)
        found = self.base.numbers[rows]
        scores = np.where(np.isin(found, self.dead), -np.inf, scores)
        newer_scores, rows = nearest(queries, self.vectors, min(k, len(self.numbers)))
        found = np.concatenate([found, self.numbers[rows]], axis=1)
        scores = np.concatenate([scores, newer_scores], axis=1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, : min(k, len(self))]
        found, scores = np.take_along_axis(found, best, 1), np.take_along_axis(scores, best, 1)
        return list(zip(found, scores, strict=True))

    def score(self, query: Vectors, numbers: Numbers) -> Scores:
        """The cosines (n,) of a mapped `query` (d,) with the passages `numbers` (n,), each of which must exist."""
        scores = np.empty(len(numbers), dtype=np.float32)
        for start in range(0, len(numbers), BLOCK):
            scores[start : start + BLOCK] = self.rows(numbers[start : start + BLOCK]) @ query
        return scores

    def rows(self, numbers: Numbers) -> Vectors:
        """The mapped vectors (n, d) of the passages `numbers` (n,)."""
        rows = np.empty((len(numbers), self.vectors.shape[1]), dtype=np.float32)
        newer = numbers > self.base.state.sequence
        rows[newer] = self.vectors[np.searchsorted(self.numbers, numbers[newer])]
        rows[~newer] = self.base.vectors[np.searchsorted(self.base.numbers, numbers[~newer])]
        return rows

    def spread(self, query: Vectors) -> Spread:
        """Mean and deviation of a mapped query's cosines with all passages, from their mean and covariance."""
        if not len(self):
            return Spread(0, 0)
        m, query = self._moments, query.astype(np.float64)
        mean = float(query @ m.total) / m.n
        mean_square = float(query @ m.outer @ query) / m.n
        return Spread(mean, max(mean_square - mean**2, 0) ** 0.5)

    @cached_property
    def _moments(self) -> Moments:
        base_rows = self.base.vectors[np.searchsorted(self.base.numbers, self.dead)]
        return self.base.moments + Moments.of(self.vectors) - Moments.of(base_rows)

    def merged(self) -> "View":
        """The same vectors, all in a new snapshot."""
        alive = ~np.isin(self.base.numbers, self.dead)
        numbers = np.concatenate([self.base.numbers[alive], self.numbers])
        vectors = np.concatenate([self.base.vectors[alive], self.vectors])
        return _bare(Snapshot.of(numbers, vectors, self.state), self.corpus_map)


def catch_up(view: View | None, store: Store, tx: sqlite3.Connection) -> View:
    """The view of the state that `tx` sees, made from an earlier one, else from the snapshot on disk, else anew."""
    identity, map_hash, sequence = store.settings.identity, store.map_hash(tx), store.sequence(tx)
    state = State(identity, map_hash, sequence)
    if view and view.state == state:
        return view
    if view is None or view.state.map_hash != map_hash:
        nothing = np.empty((0, store.corpus_map(tx).apply(_zeros(store)).shape[1]), dtype=np.float32)
        snapshot = Snapshot.load(store.folder, identity, map_hash, sequence)
        snapshot = snapshot or Snapshot.of(np.empty(0, np.int64), nothing, State(identity, map_hash, 0))
        view = _bare(snapshot, store.corpus_map(tx))

    numbers, vectors = store.vectors_after(tx, view.state.sequence)
    deleted = store.deleted_after(tx, view.state.sequence)
    numbers = np.concatenate([view.numbers, numbers])
    vectors = np.concatenate([view.vectors, view.corpus_map.apply(vectors)])
    alive = ~np.isin(numbers, deleted)
    dead = np.union1d(view.dead, np.intersect1d(deleted, view.base.numbers))
    view = View(view.base, dead, numbers[alive], vectors[alive], state, view.corpus_map)
    if len(view.dead) + len(view.numbers) > max(MOST_CHANGES, MOST_SHARE * len(view.base.numbers)):
        view = view.merged()
        view.base.save(store.folder)
    return view


def _bare(snapshot: Snapshot, corpus_map: CorpusMap) -> View:
    none = np.empty(0, dtype=np.int64)
    return View(snapshot, none, none, snapshot.vectors[:0], snapshot.state, corpus_map)


def _zeros(store: Store) -> Vectors:
    return np.zeros((1, store.settings.dimension), dtype=np.float32)
