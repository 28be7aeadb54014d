"""The newest view of an index's vectors, and its snapshots, which are checked and made in the background."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from gpt_core.common.errors import InputError
from index.dense.manifest import Manifest
from index.dense.snapshot import LOCK, Snapshot
from index.dense.view import Stored, View, catch_up
from index.store.store import Store

# Deletions are forgotten in portions, so that not every deletion costs a second transaction.
MIN_FORGOTTEN = 1000


class LiveView:
    """The newest view of the vectors of `store`, shared by all threads that search."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._view: View | None = None
        self._lock = threading.Lock()
        self._background: threading.Thread | None = None
        self._closing = threading.Event()

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
        self._closing.set()
        self._wait()

    @contextmanager
    def current(self) -> Iterator[tuple[sqlite3.Connection, View]]:
        """A read transaction and the view of the vectors in the state that the transaction sees."""
        with ExitStack() as stack:
            # The transaction begins within the lock, so that it never sees an older state than the view's.
            with self._lock:
                tx = stack.enter_context(self.store.read())
                known = None if self._view is None or self._view.base.is_damaged else self._view
                view = self._view = catch_up(known, self.store, tx)
                is_checked = view.base.is_checked
                if (view.is_snapshot_due or not is_checked) and not self._background:
                    self._background = threading.Thread(target=self._maintain, args=(view,))
                    self._background.start()
            yield tx, view if is_checked else replace(view, stored=Stored(self.store, tx, view.corpus_map))

    def save_snapshot(self) -> None:
        """Save a snapshot of the current state."""
        with self.current():
            pass
        self._wait()
        for _ in range(2):  # again if the snapshot turns out to be damaged
            with self.current() as (_, view):
                pass
            if not view.is_saved:
                self._renew(view, of_all=True)
            if not view.base.is_damaged:
                return

    def report(self) -> dict[str, Any] | None:
        """How the snapshot on the disk is searched; None if there is none."""
        saved = Manifest.read(self.store.folder)
        return saved.report() if saved else None

    def _maintain(self, view: View) -> None:
        """Check the snapshot that `view` is on, then make a new one if it is due."""
        try:
            view.base.check(self._closing)
            if view.base.is_checked and view.is_snapshot_due:
                self._renew(view)
        finally:
            with self._lock:
                self._background = None

    def _renew(self, view: View, *, of_all: bool = False) -> None:
        """Make a snapshot of `view`, or open one that another process has made, and use it from then on.

        If it cannot be written, as on a full or read-only disk, the vectors are merged in memory, and searched exactly.

        Args:
            view: the view, on a snapshot that is checked.
            of_all: take no snapshot of another process that lacks a change.
        """
        folder, base = self.store.folder, None
        with suppress(OSError), FileLock(folder / LOCK):
            saved = Snapshot.state_on_disk(folder)
            if saved and saved.is_of_same_index(view.state) and saved.sequence > view.state.sequence:
                return  # made by another process; the next search's view is new enough for it
            there = self._view_of_saved(view)
            if there and (there.is_saved if of_all else not there.is_outdated):
                with self._lock:
                    self._view = there
                return
            view.base.check_again()
            if view.base.is_damaged:
                return  # the next search reads the vectors from the store
            if not self.store.is_replaced():
                dimension = view.base.block.vectors.shape[1]
                blocks = view.live_rows()
                base = Snapshot.write(folder, len(view), dimension, blocks, view.state, view.wanted)
        if base is None:
            base = view.merged().base if view.is_outdated else view.base
            base.is_new = False
        with self._lock:
            if self._view is not None and base.state.sequence >= self._view.base.state.sequence:
                self._view = self._view.rebased(base)

    def _view_of_saved(self, view: View) -> View | None:
        """The newest state on the snapshot on the disk, if it is newer than that of `view`; else None.

        The snapshot may have passages that `view` never saw, because they were added and deleted between two searches:
        so its deletions are read from the store.
        """
        with suppress(InputError), self.store.read() as tx:  # the store is closed or replaced
            oldest = max(view.base.state.sequence, self.store.first_sequence(tx))
            there = Snapshot.load(self.store.folder, view.state, oldest)
            return catch_up(View.of(there, view.corpus_map), self.store, tx) if there else None
        return None

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
