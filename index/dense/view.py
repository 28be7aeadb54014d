"""The dense retriever: exact search over a snapshot, the vectors added since and without those deleted since.

A `View` is of one state of the store. `LiveView` has the newest one, and makes snapshots in the background.
"""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from embed.data.vectors import Vectors
from embed.network.corpus_map import CorpusMap
from index.dense.block import Block
from index.dense.moments import Moments
from index.dense.scores import Scores, Spread
from index.dense.snapshot import Snapshot, State
from index.store.store import Numbers, Store

# A new snapshot is made once additions and deletions exceed both this number and this share of the old snapshot.
MAX_CHANGES, MAX_CHANGED_SHARE = 1000, 0.25
# Deletions are forgotten in portions, so that not every deletion costs a second transaction.
MIN_FORGOTTEN = 1000
# Passages. Blocks up to the first size are joined at each addition. From the second size on they are never joined: the
# copy would need as much memory again (docs/log.md, 2026-11-29, "Snapshots of an index").
SMALL_BLOCK, LARGE_BLOCK = 1024, 16_384
ROWS_PER_STEP = 8192  # rows copied at once


@dataclass(frozen=True)
class View:
    """All vectors of one state of the store. Immutable, so that any number of threads can search it.

    Attributes:
        base: the snapshot.
        newer: the passages added since the snapshot, in blocks whose ids ascend from block to block.
        deleted: ids of passages of the snapshot and of `newer` that are deleted since, sorted ascending.
        state: the state of the store.
        corpus_map: the map to be applied to queries.
    """

    base: Snapshot
    newer: tuple[Block, ...]
    deleted: Numbers
    state: State
    corpus_map: CorpusMap

    @classmethod
    def of(cls, base: Snapshot, corpus_map: CorpusMap) -> "View":
        """A view of a snapshot without additions or deletions."""
        return cls(base, (), np.empty(0, dtype=np.int64), base.state, corpus_map)

    def __len__(self) -> int:
        return len(self.base.block) + self._n_newer - len(self.deleted)

    @property
    def is_outdated(self) -> bool:
        """Whether so much has changed since the snapshot that a new one should be made."""
        limit = max(MAX_CHANGES, MAX_CHANGED_SHARE * len(self.base.block))
        return self._n_newer + len(self.deleted) > limit

    @property
    def is_snapshot_due(self) -> bool:
        """Whether a snapshot should be saved: the base is outdated, or is not on the disk and has many passages."""
        return self.is_outdated or (self.base.is_new and len(self.base.block) > MAX_CHANGES)

    def search(self, queries: Vectors, k: int) -> list[tuple[Numbers, Scores]]:
        """The k nearest passages for each mapped query (Q, d), nearest first; fewer if the view has fewer.

        Returns:
            Q pairs of passage ids (k,) and cosines (k,).
        """
        parts = [block.search(queries, k, rows) for block, rows in self._blocks]
        if not parts:
            return [(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)) for _ in queries]
        scores = np.concatenate([scores for scores, _ in parts], axis=1)
        found = np.concatenate([numbers for _, numbers in parts], axis=1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        found, scores = np.take_along_axis(found, best, 1), np.take_along_axis(scores, best, 1)
        return list(zip(found, scores, strict=True))

    def score(self, query: Vectors, numbers: Numbers) -> Scores:
        """Cosines (n,) of a mapped `query` (d,) with the passages of ids `numbers` (n,), all of which must exist."""
        scores = np.empty(len(numbers), dtype=np.float32)
        for start in range(0, len(numbers), ROWS_PER_STEP):
            step = slice(start, start + ROWS_PER_STEP)
            scores[step] = self.rows(numbers[step]) @ query
        return scores

    def rows(self, numbers: Numbers) -> Vectors:
        """The mapped vectors (n, d) of the passages with ids `numbers` (n,)."""
        rows = np.empty((len(numbers), self.base.block.vectors.shape[1]), dtype=np.float32)
        firsts = np.array([block.numbers[0] for block, _ in self._blocks], dtype=np.int64)
        places = np.searchsorted(firsts, numbers, side="right") - 1
        for i, (block, _) in enumerate(self._blocks):
            inside = places == i
            rows[inside] = block.vectors[np.searchsorted(block.numbers, numbers[inside])]
        return rows

    def spread(self, query: Vectors) -> Spread:
        """Mean and deviation of a mapped query's (d,) cosines with all passages, from the vectors' moments."""
        if not len(self):
            return Spread(0, 0)
        m, query = self._moments, query.astype(np.float64)
        mean = float(query @ m.total) / m.n
        mean_square = float(query @ m.outer @ query) / m.n
        return Spread(mean, max(mean_square - mean**2, 0) ** 0.5)

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
        moments = -Moments.of(self.rows(self.deleted))
        for block, _ in self._blocks:
            moments += block.moments
        return moments

    def merged(self) -> "View":
        """A view of the same vectors, all in one new snapshot."""
        dimension = self.base.block.vectors.shape[1]
        return View.of(Snapshot.of(len(self), dimension, self._live_rows(), self.state), self.corpus_map)

    def _live_rows(self) -> Iterator[Block]:
        """The passages that are not deleted, in steps, so that no more than a step is copied at a time."""
        for block, deleted in self._blocks:
            live = np.ones(len(block), dtype=bool)
            live[deleted] = False
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


def catch_up(view: View | None, store: Store, tx: sqlite3.Connection) -> View:
    """The view of the state that `tx` sees, from an earlier view, else the snapshot on disk, else all vectors."""
    state = State(store.settings.identity, store.map_hash(tx), store.sequence(tx))
    if view is not None and view.state == state:
        return view
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
    return View(view.base, newer, deleted, state, view.corpus_map)


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


class LiveView:
    """The newest view of the vectors of `store`, shared by all threads that search."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._view: View | None = None
        self._lock = threading.Lock()
        self._background: threading.Thread | None = None

    @classmethod
    def open(cls, folder: Path) -> "LiveView":
        """Open the store in `folder`.

        Raises:
            InputError: if there is no store, or it cannot be read.
        """
        saved = Snapshot.state_on_disk(folder)
        store = Store(folder)
        with store.read() as tx:
            # After restoring a backup the snapshot may be newer than the store. This can only be detected while the
            # store's sequence number is still lower, so it is checked when the index is opened.
            is_older = (
                saved and saved.identity == store.settings.identity and saved.sequence <= store.sequence(tx)
            )
        if saved and not is_older:
            Snapshot.discard(folder)
        return cls(store)

    def close(self) -> None:
        """Close the store, and wait for the snapshot that is being written."""
        self.store.close()
        self._wait()

    @contextmanager
    def current(self) -> Iterator[tuple[sqlite3.Connection, View]]:
        """A read transaction and the view of the vectors in the state that the transaction sees."""
        with ExitStack() as stack:
            # The transaction begins within the lock, so that it never sees an older state than the view's.
            with self._lock:
                tx = stack.enter_context(self.store.read())
                view = self._view = catch_up(self._view, self.store, tx)
                if view.is_snapshot_due and not self._background:
                    self._background = threading.Thread(target=self._renew, args=(view,))
                    self._background.start()
            yield tx, view

    def save_snapshot(self) -> None:
        """Save a snapshot of the current state."""
        with self.current():
            pass
        self._wait()
        with self._lock:
            view = self._view
        assert view is not None  # `current` made it
        self._save(view.merged().base if view.newer or len(view.deleted) else view.base)

    def _renew(self, view: View) -> None:
        """Merge `view` into a snapshot, use it from then on, and save it."""
        try:
            self._save(view.merged().base if view.is_outdated else view.base)
        finally:
            with self._lock:
                self._background = None

    def _save(self, base: Snapshot) -> None:
        with self._lock:
            if self._view is not None and base.state.sequence > self._view.base.state.sequence:
                self._view = self._view.rebased(base)
        if not self.store.is_replaced():
            base.save(self.store.folder)

    def _wait(self) -> None:
        with self._lock:
            background = self._background
        if background:
            background.join()

    def forget_deletions(self, at_least: int | None = None) -> None:
        """Delete the records of those deletions that the snapshot on disk includes, if there are enough.

        The caller is the writer.

        Args:
            at_least: so many are enough; None: `MIN_FORGOTTEN`.

        A view that is older than the snapshot then starts from the snapshot.
        """
        saved = Snapshot.state_on_disk(self.store.folder)
        if saved and saved.identity == self.store.settings.identity:
            self.store.forget_deletions(saved.sequence, MIN_FORGOTTEN if at_least is None else at_least)
