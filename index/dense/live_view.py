"""The view of an open index: brought up to date before each search; its snapshots are made in the background."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from index.dense.snapshot import Snapshot
from index.dense.view import View, catch_up
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

    def forget_deletions(self) -> None:
        """Delete the records of those deletions that the snapshot on disk includes; the caller is the writer.

        A view that is older than the snapshot then starts from the snapshot.
        """
        saved = Snapshot.state_on_disk(self.store.folder)
        if saved and saved.identity == self.store.settings.identity:
            self.store.forget_deletions(saved.sequence, MIN_FORGOTTEN)
