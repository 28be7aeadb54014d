"""The newest postings of a store: the cache, the passages added since and without those deleted since."""

import sqlite3
import threading
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from gpt_core.common.errors import InputError
from index.lexical.bm25 import Bm25
from index.lexical.cache import Cache, State
from index.lexical.postings import Postings
from index.store.schema import LEXICAL
from index.store.store import Numbers, Store
from index.store.texts import passage_texts
from index.store.words import lexical_terms

# Passages. Below the first number FTS5 answers at once. As many as the second are read when a search begins; if there
# are more, FTS5 answers until the cache was made anew (docs/log.md, 2026-11-30, "Lexical search by postings").
MIN_PASSAGES, MAX_NEW = 20_000, 2000
# The cache is made anew once additions and deletions exceed both this number and this share of it.
MAX_CHANGES, MAX_CHANGED_SHARE = 2000, 0.1
MAX_PARTS = 16  # additions since; more are joined
MOST_RECENT = 4  # states that are kept

Terms = tuple[int, dict[str, str]]  # a passage's id, and what each table of the full text has for it


@dataclass(frozen=True, eq=False)
class Words:
    """All postings of one state of the store. Immutable, so that any number of threads can search it."""

    state: State
    base: Cache
    newer: tuple[dict[str, Postings], ...]
    terms: tuple[Terms, ...]  # of all passages of `newer`
    deleted: Numbers

    @classmethod
    def of(cls, base: Cache) -> "Words":
        """The postings of a cache."""
        return cls(base.state, base, (), (), np.empty(0, dtype=np.int64))

    @property
    def is_outdated(self) -> bool:
        """Whether so much has changed since the cache was made that it should be made anew."""
        n = len(next(iter(self.base.postings.values())).numbers)
        return len(self.terms) + len(self.deleted) > max(MAX_CHANGES, MAX_CHANGED_SHARE * n)

    @cached_property
    def tables(self) -> dict[str, Bm25]:
        """The postings of each table of the full text."""
        return {
            name: Bm25(name, (postings, *(one[name] for one in self.newer)), self.deleted)
            for name, postings in self.base.postings.items()
        }


def catch_up(words: Words, store: Store, tx: sqlite3.Connection) -> Words | None:
    """The postings of the state that `tx` sees, from earlier ones; None if there is too much to read."""
    state, since = State.of(store, tx), words.state.sequence
    if state == words.state:
        return words
    if not state.is_of_same_index(words.state) or not store.first_sequence(tx) <= since <= state.sequence:
        return None
    too_many = "SELECT 1 FROM passages WHERE number > ? LIMIT 1 OFFSET ?"
    if tx.execute(too_many, (since, MAX_NEW)).fetchone():
        return None
    new = tuple(
        (n, lexical_terms(title, text)) for n, title, text in passage_texts(tx, "p.number > ?", (since,))
    )
    terms, newer = words.terms + new, words.newer
    if new:
        newer = (*newer, _postings(new)) if len(newer) < MAX_PARTS else (_postings(terms),)
    gone = store.deleted_after(tx, since)
    deleted = np.union1d(words.deleted, gone[gone <= since])
    return replace(words, state=state, newer=newer, terms=terms, deleted=deleted)


def _postings(terms: tuple[Terms, ...]) -> dict[str, Postings]:
    """The postings of passages, by FTS5 as in the store."""
    with closing(sqlite3.connect(":memory:")) as db:
        for name, statement in LEXICAL.items():
            db.execute(statement)
            rows = ((number, found[name]) for number, found in terms)
            db.executemany(f"INSERT INTO {name} (rowid, terms) VALUES (?, ?)", rows)
        return {name: Postings.read(db, name) for name in LEXICAL}


class LiveWords:
    """The newest postings of `store`, shared by all threads that search."""

    def __init__(self, store: Store) -> None:
        self.store = store
        # The newest last; a search that began earlier needs an earlier one.
        self._recent: list[Words] = []
        self._lock = threading.Lock()
        self._background: threading.Thread | None = None
        with store.read() as tx:
            # A backup that was restored has a lower sequence number until others are written.
            Cache.discard_newer(store.folder, State.of(store, tx))

    def current(self, tx: sqlite3.Connection) -> Words | None:
        """The postings of the state that `tx` sees; None if FTS5 is to be asked: if there are few passages, or too many
        new ones, until the cache is made, in the background.
        """
        with self._lock:
            state = State.of(self.store, tx)
            if not self._recent and not self._background:
                cache = Cache.load(self.store.folder, state, self.store.first_sequence(tx))
                self._recent = [Words.of(cache)] if cache else []
            earlier = [words for words in self._recent if words.state.sequence <= state.sequence]
            words = catch_up(earlier[-1], self.store, tx) if earlier else None
            if words and words.state.sequence > self._recent[-1].state.sequence:
                self._recent = [*self._recent[1 - MOST_RECENT :], words]
            is_late = not earlier and self._recent  # the search began before the cache was made
            is_due = words.is_outdated if words else not is_late and self._is_large(tx)
            if is_due:
                self._start()
            return words

    def save(self) -> None:
        """Make the cache of the current state, if the store is large enough for one, and save it."""
        self.wait()
        with self.store.read() as tx:
            if not self._is_large(tx):
                return
            words = self.current(tx)
        if words and (words.newer or len(words.deleted)):
            with self._lock:
                self._start()
        self.wait()

    def wait(self) -> None:
        """Wait for the cache that is being made."""
        with self._lock:
            background = self._background
        if background:
            background.join()

    def _is_large(self, tx: sqlite3.Connection) -> bool:
        query = "SELECT 1 FROM passages LIMIT 1 OFFSET ?"
        return tx.execute(query, (MIN_PASSAGES - 1,)).fetchone() is not None

    def _start(self) -> None:
        """Make the cache anew in the background; the caller holds the lock."""
        if not self._background:
            self._background = threading.Thread(target=self._renew)
            self._background.start()

    def _renew(self) -> None:
        """Make the cache of the current state, use it from then on, and save it."""
        try:
            with suppress(InputError, OSError):  # the store is closed or replaced
                with self.store.read() as tx:
                    cache = Cache.read(self.store, tx)
                cache.save(self.store.folder)
                with self._lock:
                    self._recent = [Words.of(cache)]
        finally:
            with self._lock:
                self._background = None
