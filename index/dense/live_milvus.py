"""The dense retriever on Milvus, which gives candidates; they are scored exactly, on the vectors in the store."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from embed.data.vectors import Vectors
from embed.network.corpus_map import CorpusMap
from gpt_core.common.errors import InputError
from index.dense.backend import best_among
from index.dense.block import Block
from index.dense.live import MIN_FORGOTTEN
from index.dense.manifest import State
from index.dense.milvus import MAX_K, Address, MilvusCopy, MilvusError
from index.dense.moments import Moments
from index.dense.scores import Scores, Spread
from index.dense.view import EXTRA, Stored, state_of
from index.store.store import Numbers, Store

LOCK = "milvus.lock"
# So many passages or fewer that a filter allows are read from the store and scored; of more, Milvus gets the ids.
EXACT_AMONG = 10_000


class _Totals:
    """The moments of all vectors in a state, computed when they are first needed; shared by the views of the state."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._moments: Moments | None = None
        self._lock = threading.Lock()

    def moments(self, stored: Stored) -> Moments:
        """The moments of the vectors in the store, in this state."""
        with self._lock:
            if self._moments is None:
                self._moments = stored.moments()
            return self._moments


@dataclass(frozen=True)
class MilvusView:
    """All vectors of the state of the store that a transaction sees.

    The copy may be newer, as another process writes to it: candidates that the transaction does not see are left out.
    """

    stored: Stored
    copy: MilvusCopy
    totals: _Totals

    @property
    def corpus_map(self) -> CorpusMap:
        """The map to be applied to queries."""
        return self.stored.corpus_map

    def __len__(self) -> int:
        return self.stored.store.count(self.stored.tx, "passages")

    def is_exact(self, k: int, allowed: Numbers | None) -> bool:
        """Whether a search for k passages among the ids `allowed` (None for all) ranks all of them by their vectors."""
        return k + EXTRA > MAX_K or (allowed is not None and len(allowed) <= EXACT_AMONG)

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
        if self.is_exact(k, allowed):
            return [best_among(self, query, self._all(allowed), k) for query in queries]
        n = min(k, len(self) if allowed is None else len(allowed))
        results = []
        for query, numbers in zip(queries, self.copy.nearest(queries, k + EXTRA, allowed), strict=True):
            found = best_among(self, query, self._existing(numbers), k)
            # Few, if the copy has lost passages or has many that the transaction does not see.
            results.append(found if len(found[0]) >= n else best_among(self, query, self._all(allowed), k))
        return results

    def _existing(self, numbers: Numbers) -> Numbers:
        return np.array(sorted(self.stored.store.owners(self.stored.tx, numbers.tolist())), dtype=np.int64)

    def _all(self, allowed: Numbers | None) -> Numbers:
        return self.stored.store.passage_numbers(self.stored.tx) if allowed is None else allowed

    def score(self, query: Vectors, numbers: Numbers) -> Scores:
        """Cosines (n,) of a mapped `query` (d,) with the passages of ids `numbers` (n,), all of which must exist."""
        return self.stored.score(query, numbers)

    def rows(self, numbers: Numbers) -> Vectors:
        """The mapped vectors (n, d) of the passages with ids `numbers` (n,)."""
        return self.stored.rows(numbers)

    def spread(self, query: Vectors) -> Spread:
        """Mean and deviation of a mapped query's (d,) cosines with all passages, from the vectors' moments."""
        return self.totals.moments(self.stored).spread(query)


class LiveMilvus:
    """The vectors of `store` in a copy that is brought up to date before a search; shared by all threads that search.

    Attributes:
        store: the store.
    """

    def __init__(self, store: Store, address: Address) -> None:
        self.store = store
        self._address = address
        self._copy: MilvusCopy | None = None
        self._known: State | None = None  # a state that the copy had, or is newer than
        self._totals: _Totals | None = None
        self._lock = threading.Lock()
        # At once, so that a copy that is newer than the store is noticed. Without Milvus, only searches fail.
        with suppress(InputError):
            self._connected()

    def close(self) -> None:
        """Close the store and the connection."""
        self.store.close()
        with self._lock:
            if self._copy:
                self._copy.close()

    @contextmanager
    def current(self) -> Iterator[tuple[sqlite3.Connection, MilvusView]]:
        """A read transaction and the view of the vectors in the state that the transaction sees.

        Raises:
            MilvusError: if Milvus cannot be used.
        """
        try:
            with ExitStack() as stack:
                with self._lock:
                    copy = self._connected()
                    tx = stack.enter_context(self.store.read())
                    stored = Stored(self.store, tx, self.store.corpus_map(tx))
                    state = state_of(self.store, tx)
                    self._catch_up(copy, stored, state)
                    if self._totals is None or self._totals.state != state:
                        self._totals = _Totals(state)
                    totals = self._totals
                yield tx, MilvusView(stored, copy, totals)
        except MilvusError:
            self._known = None  # the server may have lost its data; the next search looks
            raise

    def save_snapshot(self) -> None:
        """Bring the copy up to date."""
        with self.current():
            pass

    def forget_deletions(self, at_least: int | None = None) -> None:
        """Delete the records of those deletions that the copy includes, if there are enough; the caller is the writer.

        Args:
            at_least: so many are enough; None: `MIN_FORGOTTEN`.
        """
        known = self._known
        if known and known.identity == self.store.settings.identity:
            self.store.forget_deletions(known.sequence, MIN_FORGOTTEN if at_least is None else at_least)

    def report(self) -> dict[str, Any] | None:
        """How the vectors are searched."""
        return {"type": "Milvus"}

    def _connected(self) -> MilvusCopy:
        if self._copy is None:
            copy = MilvusCopy(self._address)
            copied = copy.state()
            with self.store.read() as tx:
                # After restoring a backup the copy may be newer than the store, which can only be detected now, while
                # the store's sequence number is still lower.
                is_newer = copied and copied.sequence > self.store.sequence(tx)
            if copied and is_newer and copied.identity == self.store.settings.identity:
                copy.forget()
            self._copy = copy
        return self._copy

    def _catch_up(self, copy: MilvusCopy, stored: Stored, state: State) -> None:
        """Bring the copy to `state`, unless it is as new."""
        if _is_as_new(self._known, state):
            return
        lock = self.store.folder / LOCK
        Path(lock).touch()  # raises OSError if no file can be created; filelock would retry forever
        with FileLock(lock):
            copied = copy.state()
            if not _is_as_new(copied, state):
                self._write(copy, stored, state, copied)
                copied = state
        self._known = copied

    def _write(self, copy: MilvusCopy, stored: Stored, state: State, copied: State | None) -> None:
        """Write to the copy what has changed since the state `copied`, or everything."""
        store, tx = stored.store, stored.tx
        is_usable = copied and copied.is_of_same_index(state) and copied.sequence >= store.first_sequence(tx)
        since = copied.sequence if copied and is_usable else 0
        blocks = (
            Block(numbers, stored.corpus_map.apply(vectors))
            for numbers, vectors in store.vector_blocks(tx, since)
        )
        if is_usable:
            copy.update(state, blocks, store.deleted_after(tx, since))
        else:
            dimension = stored.rows(np.empty(0, dtype=np.int64)).shape[1]
            copy.rebuild(state, dimension, blocks)


def _is_as_new(one: State | None, state: State) -> bool:
    return one is not None and one.is_of_same_index(state) and one.sequence >= state.sequence
