"""The dense retriever: search in a snapshot and the vectors added since, without those deleted since.

A `View` is of one state of the store. `index.dense.live.LiveView` has the newest one.
"""

import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from embed.data.vectors import Vectors
from embed.network.corpus_map import CorpusMap
from index.dense.ann import DEFAULT, Wanted
from index.dense.backend import best_among
from index.dense.block import Block
from index.dense.manifest import State
from index.dense.moments import Moments
from index.dense.scores import Scores, Spread
from index.dense.snapshot import Snapshot
from index.store.store import Numbers, Store

# A new snapshot is made once additions and deletions exceed both this number and this share of the old snapshot.
MAX_CHANGES, MAX_CHANGED_SHARE = 1000, 0.25
# Among so many passages, or such a share of a snapshot, a filtered search is exact; approximate search is slower there
# (docs/log.md, 2026-11-30, "Approximate search: filters").
EXACT_AMONG, EXACT_SHARE = 50_000, 0.1
# A search for this share of the passages or more is exact.
EXACT_K = 0.1
# Additional candidates from vectors that were not checked yet. A damaged vector may be a wrong candidate.
EXTRA = 16
# Passages. Blocks up to the first size are joined at each addition. From the second size on they are never joined: the
# copy would need as much memory again (docs/log.md, 2026-11-29, "Snapshots of an index").
SMALL_BLOCK, LARGE_BLOCK = 1024, 16_384
ROWS_PER_STEP = 8192  # rows copied at once


@dataclass(frozen=True)
class Stored:
    """The vectors in the store, for as long as those of the snapshot are not checked."""

    store: Store
    tx: sqlite3.Connection
    corpus_map: CorpusMap

    def rows(self, numbers: Numbers) -> Vectors:
        """The mapped vectors (n, d) of the passages with ids `numbers` (n,)."""
        return self.corpus_map.apply(self.store.vectors_of(self.tx, numbers))

    def score(self, query: Vectors, numbers: Numbers) -> Scores:
        """Cosines (n,) of a mapped `query` (d,) with the passages of ids `numbers` (n,), all of which must exist."""
        scores = np.empty(len(numbers), dtype=np.float32)
        for start in range(0, len(numbers), ROWS_PER_STEP):
            step = slice(start, start + ROWS_PER_STEP)
            scores[step] = self.rows(numbers[step]) @ query
        return scores

    def moments(self) -> Moments:
        """The moments of all vectors."""
        blocks = (Moments.of(self.corpus_map.apply(rows)) for _, rows in self.store.vector_blocks(self.tx, 0))
        return sum(blocks, start=Moments.of(self.rows(np.empty(0, dtype=np.int64))))


@dataclass(frozen=True)
class View:
    """All vectors of one state of the store. Immutable, so that any number of threads can search it.

    Attributes:
        base: the snapshot.
        newer: the passages added since the snapshot, in blocks whose ids ascend from block to block.
        deleted: ids of passages of the snapshot and of `newer` that are deleted since, sorted ascending.
        state: the state of the store.
        corpus_map: the map to be applied to queries.
        wanted: what the index's settings ask of its snapshots.
        stored: where the snapshot's vectors are read instead; None: in the snapshot, which is checked.
    """

    base: Snapshot
    newer: tuple[Block, ...]
    deleted: Numbers
    state: State
    corpus_map: CorpusMap
    wanted: Wanted = DEFAULT
    stored: Stored | None = None

    @classmethod
    def of(cls, base: Snapshot, corpus_map: CorpusMap) -> "View":
        """A view of a snapshot without additions or deletions."""
        return cls(base, (), np.empty(0, dtype=np.int64), base.state, corpus_map)

    def __len__(self) -> int:
        return len(self.base.block) + self._n_newer - len(self.deleted)

    @property
    def is_outdated(self) -> bool:
        """Whether so much has changed since the snapshot, or its settings, that a new one should be made."""
        limit = max(MAX_CHANGES, MAX_CHANGED_SHARE * len(self.base.block))
        return self._n_newer + len(self.deleted) > limit or self.base.wanted not in (None, self.wanted)

    @property
    def is_snapshot_due(self) -> bool:
        """Whether a snapshot should be saved: the base is outdated, or is not on the disk and has many passages."""
        return self.is_outdated or (self.base.is_new and len(self.base.block) > MAX_CHANGES)

    @property
    def is_saved(self) -> bool:
        """Whether the snapshot is on the disk, of this state, and as its settings ask."""
        return self.base.wanted == self.wanted and not self.newer and not len(self.deleted)

    def is_exact(self, k: int, allowed: Numbers | None) -> bool:
        """Whether a search for k passages among the ids `allowed` (None for all) ranks all of them by their vectors."""
        if allowed is not None and not self._is_approximate(k, allowed):
            return True
        return self.stored is None and not self._is_approximate(k, allowed)

    def _is_approximate(self, k: int, allowed: Numbers | None) -> bool:
        n = len(self.base.block)
        if self.base.ann is None or k >= EXACT_K * n:
            return False
        return allowed is None or len(allowed) > max(EXACT_AMONG, EXACT_SHARE * n, k / EXACT_K)

    def search(
        self, queries: Vectors, k: int, allowed: Numbers | None = None
    ) -> list[tuple[Numbers, Scores]]:
        """The k nearest passages for each mapped query (Q, d), nearest first; fewer only if there are fewer.

        Args:
            queries: (Q, d), mapped.
            k: number of passages.
            allowed: sorted ids of the passages to search; None for all.

        Returns:
            Q pairs of passage ids (k,) and cosines (k,).
        """
        approximate = self._is_approximate(k, allowed)
        if allowed is not None and not approximate:
            return [best_among(self, query, allowed, k) for query in queries]
        parts = []
        for block, deleted in self._blocks:
            if allowed is not None:
                excluded = np.ones(len(block), dtype=bool)
                excluded[block.rows_of(allowed)] = False
                deleted = np.flatnonzero(excluded)
            if block is self.base.block and (approximate or self.stored):
                found, rows = self._search_base(queries, k, deleted, approximate)
            else:
                found, rows = block.search(queries, k, deleted)
            parts.append((block.numbers[rows], found))
        if not parts:
            return [(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)) for _ in queries]
        numbers, scores = parts[0]
        if len(parts) > 1:
            numbers, scores = (np.concatenate(both, axis=1) for both in zip(*parts, strict=True))
            scores, numbers = _first(scores, numbers, k)
        return list(zip(numbers, scores, strict=True))

    def _search_base(
        self, queries: Vectors, k: int, deleted: Numbers, approximate: bool
    ) -> tuple[Scores, Numbers]:
        """Scores (Q, k) and rows (Q, k) of the snapshot's passages: candidates, which are then scored exactly."""
        block, ann = self.base.block, self.base.ann
        k = min(k, len(block) - len(deleted))
        if ann is None or not approximate:
            return self._rescored(queries, k, self._candidates(queries, k, deleted))
        live = _live(len(block), deleted) if len(deleted) else None
        scores, rows = self._rescored(queries, k, ann.search(queries, k, live))
        lacking = np.isneginf(scores[:, -1:]).any(axis=1)  # the last is the lowest; none for k = 0
        if lacking.any():  # where few passages of the lists that were read are live
            candidates = self._candidates(queries[lacking], k, deleted)
            scores[lacking], rows[lacking] = self._rescored(queries[lacking], k, candidates)
        return scores, rows

    def _candidates(self, queries: Vectors, k: int, deleted: Numbers) -> Numbers:
        """The rows (Q, k or more) of the nearest passages by the vectors in the snapshot."""
        n = len(self.base.block)
        if k + EXTRA >= n - len(deleted):
            return np.tile(np.flatnonzero(_live(n, deleted)), (len(queries), 1))
        return self.base.block.search(queries, k + EXTRA, deleted)[1]

    def _rescored(self, queries: Vectors, k: int, rows: Numbers) -> tuple[Scores, Numbers]:
        """Exact scores (Q, k) of the k best of each query's candidates (Q, c), highest first, and their rows (Q, k)."""
        if self.stored is None:
            scores = self.base.block.score(queries, rows)
        else:
            vectors = self.stored.rows(self.base.block.numbers[np.maximum(rows, 0)].ravel())
            scores = np.einsum("qd,qcd->qc", queries, vectors.reshape(*rows.shape, -1))
            scores[rows < 0] = -np.inf
        if rows.shape[1] < k:
            missing = ((0, 0), (0, k - rows.shape[1]))
            scores, rows = np.pad(scores, missing, constant_values=-np.inf), np.pad(rows, missing)
        return _first(scores, rows, k)

    def score(self, query: Vectors, numbers: Numbers) -> Scores:
        """Cosines (n,) of a mapped `query` (d,) with the passages of ids `numbers` (n,), all of which must exist."""
        scores = np.empty(len(numbers), dtype=np.float32)
        for block, inside in self._places(numbers):
            if block is self.base.block and self.stored:
                scores[inside] = self.stored.score(query, numbers[inside])
            else:
                rows = np.searchsorted(block.numbers, numbers[inside])
                scores[inside] = block.score(query[None], rows[None])[0]
        return scores

    def rows(self, numbers: Numbers) -> Vectors:
        """The mapped vectors (n, d) of the passages with ids `numbers` (n,)."""
        rows = np.empty((len(numbers), self.base.block.vectors.shape[1]), dtype=np.float32)
        for block, inside in self._places(numbers):
            if block is self.base.block and self.stored:
                rows[inside] = self.stored.rows(numbers[inside])
            else:
                rows[inside] = block.vectors[np.searchsorted(block.numbers, numbers[inside])]
        return rows

    def _places(self, numbers: Numbers) -> Iterator[tuple[Block, NDArray[np.bool_]]]:
        """Each block, and which of the passages (n,) with ids `numbers` are in it."""
        firsts = np.array([block.numbers[0] for block, _ in self._blocks], dtype=np.int64)
        places = np.searchsorted(firsts, numbers, side="right") - 1
        for i, (block, _) in enumerate(self._blocks):
            yield block, places == i

    def spread(self, query: Vectors) -> Spread:
        """Mean and deviation of a mapped query's (d,) cosines with all passages, from the vectors' moments."""
        return self._moments.spread(query)

    @property
    def _n_newer(self) -> int:
        return sum(map(len, self.newer))

    @cached_property
    def _blocks(self) -> list[tuple[Block, Numbers]]:
        """The blocks that have passages, each with the rows of its deleted passages."""
        return [
            (block, block.rows_of(self.deleted)) for block in (self.base.block, *self.newer) if len(block)
        ]

    @cached_property
    def _moments(self) -> Moments:
        deleted = Moments.of(self.base.block.vectors[:0])
        if len(self.deleted):
            if self.stored:  # the vectors of deleted passages are in the snapshot only
                self.base.check(threading.Event())
                if self.base.is_damaged:
                    return self.stored.moments()
            deleted = Moments.of(replace(self, stored=None).rows(self.deleted))
        moments = self.base.moments + -deleted
        for block in self.newer:
            moments += block.moments
        return moments

    def merged(self) -> "View":
        """A view of the same vectors, all in one new snapshot."""
        dimension = self.base.block.vectors.shape[1]
        base = Snapshot.of(len(self), dimension, self.live_rows(), self.state)
        return replace(View.of(base, self.corpus_map), wanted=self.wanted)

    def live_rows(self) -> Iterator[Block]:
        """The passages that are not deleted, in steps, so that no more than a step is copied at a time."""
        for block, deleted in self._blocks:
            live = _live(len(block), deleted)
            for start in range(0, len(block), ROWS_PER_STEP):
                step = slice(start, start + ROWS_PER_STEP)
                yield Block(block.numbers[step][live[step]], block.vectors[step][live[step]])

    def rebased(self, base: Snapshot) -> "View":
        """The same state on a snapshot of this index that was made of an earlier view."""
        if not base.state.is_of_same_index(self.state):
            return self
        newer = [block.after(base.state.sequence) for block in self.newer]
        deleted = self.deleted[
            np.isin(self.deleted, base.block.numbers) | (self.deleted > base.state.sequence)
        ]
        return replace(self, base=base, newer=tuple(block for block in newer if len(block)), deleted=deleted)


def _first(scores: Scores, rows: Numbers, k: int) -> tuple[Scores, Numbers]:
    """The k highest of each row of `scores` (Q, n), highest first, and what `rows` (Q, n) has beside them."""
    first = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    each = np.arange(len(scores))[:, None]  # with which numpy selects faster than by take_along_axis
    return scores[each, first], rows[each, first]


def _live(n: int, deleted: Numbers) -> NDArray[np.bool_]:
    """Which of n rows are not `deleted`."""
    live = np.ones(n, dtype=bool)
    live[deleted] = False
    return live


def state_of(store: Store, tx: sqlite3.Connection) -> State:
    """The state that a transaction sees."""
    return State(store.settings.identity, store.map_hash(tx), store.sequence(tx))


def catch_up(view: View | None, store: Store, tx: sqlite3.Connection) -> View:
    """The view of the state that `tx` sees, from an earlier view, else the snapshot on disk, else all vectors."""
    state = state_of(store, tx)
    wanted = Wanted(*store.faiss(tx))
    if view is not None and view.state == state:
        return view if view.wanted == wanted else replace(view, wanted=wanted)
    oldest = store.first_sequence(tx)
    known = view is not None and view.state.is_of_same_index(state)
    if view is None or not known or not oldest <= view.state.sequence <= state.sequence:
        view = _first_view(store, tx, state, oldest)
    newer = view.newer
    for numbers, vectors in store.vector_blocks(tx, view.state.sequence):
        newer = _appended(newer, Block(numbers, view.corpus_map.apply(vectors)))
    # Passages that were added after the view's state and are deleted already are not among the newer vectors.
    gone = store.deleted_after(tx, view.state.sequence)
    deleted = np.union1d(view.deleted, gone[gone <= view.state.sequence])
    return View(view.base, newer, deleted, state, view.corpus_map, wanted)


def _first_view(store: Store, tx: sqlite3.Connection, state: State, oldest: int) -> View:
    corpus_map = store.corpus_map(tx)
    base = Snapshot.load(store.folder, state, oldest)
    if base is None:
        dimension = corpus_map.apply(np.zeros((1, store.settings.dimension), dtype=np.float32)).shape[1]
        blocks = (
            Block(numbers, corpus_map.apply(vectors)) for numbers, vectors in store.vector_blocks(tx, 0)
        )
        base = Snapshot.of(store.count(tx, "passages"), dimension, blocks, state)
    return View.of(base, corpus_map)


def _appended(blocks: tuple[Block, ...], block: Block) -> tuple[Block, ...]:
    """`blocks` with one more, which is joined with those before that are neither larger nor large.

    So a passage is copied a logarithmic number of times, however few are added at a time, and there are few blocks.
    """
    joined = [block]
    while blocks and len(blocks[-1]) <= min(max(SMALL_BLOCK, sum(map(len, joined))), LARGE_BLOCK - 1):
        *rest, last = blocks
        blocks, joined = tuple(rest), [last, *joined]
    return (*blocks, Block.joined(joined) if len(joined) > 1 else block)
