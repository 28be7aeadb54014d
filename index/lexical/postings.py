"""Postings: for each term of the full text, the passages that have it and how often; and BM25 as FTS5 computes it.

FTS5 scores and returns the matches one by one, which takes seconds for words that are in many of a million passages.
Here they are arrays.
"""

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.store.store import Numbers

BLOCK = 2**22  # occurrences of terms that are read at once


@dataclass(frozen=True, eq=False)
class Postings:
    """The postings of one table of the full text; immutable.

    Attributes:
        numbers: (n,) int64 ids of the passages, sorted ascending.
        lengths: (n,) int32 numbers of terms in them, repetitions included.
        terms: the UTF-8 bytes of all terms, sorted, one after the other.
        term_ends: (V + 1,) int64 where each term ends in `terms`, after a 0.
        ends: (V + 1,) int64 where each term's postings end in `rows` and `counts`, after a 0.
        rows: (P,) int32 rows of `numbers`, for each term sorted ascending.
        counts: (P,) unsigned, how often the term is in the passage.
    """

    numbers: Numbers
    lengths: NDArray[np.int32]
    terms: NDArray[np.uint8]
    term_ends: NDArray[np.int64]
    ends: NDArray[np.int64]
    rows: NDArray[np.int32]
    counts: NDArray[Any]

    @classmethod
    def read(cls, tx: sqlite3.Connection, table: str) -> "Postings":
        """Read the postings of an FTS5 table."""
        for kind in ("row", "instance"):
            tx.execute(f"DROP TABLE IF EXISTS temp.{kind}_of_words")
            tx.execute(
                f"CREATE VIRTUAL TABLE temp.{kind}_of_words USING fts5vocab('main', '{table}', '{kind}')"
            )
        ids = tx.execute(f"SELECT id FROM {table}_docsize ORDER BY id")
        numbers = np.fromiter(chain.from_iterable(ids), dtype=np.int64)
        terms, passages, occurrences = [], [], []
        for term, n_passages, n_occurrences in tx.execute("SELECT term, doc, cnt FROM temp.row_of_words"):
            terms.append(term.encode())
            passages.append(n_passages)
            occurrences.append(n_occurrences)
        # Both tables have the terms in the same order; `instance` has a row for each occurrence.
        found = chain.from_iterable(tx.execute("SELECT doc FROM temp.instance_of_words"))
        rows = np.empty(sum(passages), dtype=np.int32)
        counts = np.empty(len(rows), dtype=np.uint32)
        lengths, filled = np.zeros(len(numbers), dtype=np.int64), 0
        for n, which in _blocks(occurrences):
            places = np.searchsorted(numbers, np.fromiter(islice(found, n), dtype=np.int64, count=n))  # (n,)
            lengths += np.bincount(places, minlength=len(numbers))
            of_term = np.repeat(np.arange(len(which)), which)  # (n,)
            begins = np.flatnonzero(np.diff(places, prepend=-1) | np.diff(of_term, prepend=-1))
            end = filled + len(begins)
            rows[filled:end], counts[filled:end] = places[begins], np.diff(begins, append=n)
            filled = end
        return cls(
            numbers,
            lengths.astype(np.int32),
            np.frombuffer(b"".join(terms), dtype=np.uint8),
            np.cumsum([0, *map(len, terms)], dtype=np.int64),
            np.cumsum([0, *passages], dtype=np.int64),
            rows,
            counts.astype(np.min_scalar_type(counts.max(initial=0))),
        )

    def of(self, stem: str, is_prefix: bool = False) -> tuple[NDArray[np.int32], NDArray[Any]]:
        """Rows (m,), sorted ascending, and counts (m,) of a stemmed term, or of all terms that begin with it."""
        term = stem.encode()
        first = self._place(term)
        end = self._place(term + b"\xff") if is_prefix else self._place(term + b"\0")
        part = slice(int(self.ends[first]), int(self.ends[end]))
        rows, counts = self.rows[part], self.counts[part]
        if end - first <= 1:
            return rows, counts
        rows, which = np.unique(rows, return_inverse=True)
        return rows, np.bincount(which, weights=counts).astype(np.int64)

    def _place(self, term: bytes) -> int:
        """The number of terms that sort before `term`."""
        low, high = 0, len(self.term_ends) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self._term(middle) < term else (low, middle)
        return low

    def _term(self, place: int) -> bytes:
        return self.terms[self.term_ends[place] : self.term_ends[place + 1]].tobytes()


def _blocks(occurrences: list[int]) -> Iterator[tuple[int, list[int]]]:
    """The terms' numbers of occurrences in blocks of about `BLOCK` occurrences, each with its sum."""
    ends = np.cumsum(occurrences)
    first = 0
    while first < len(ends):
        before = int(ends[first - 1]) if first else 0
        end = max(first + 1, int(np.searchsorted(ends, before + BLOCK, side="right")))
        yield int(ends[end - 1]) - before, occurrences[first:end]
        first = end
