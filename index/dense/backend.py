"""What searches need of an index's vectors, whatever holds them: FAISS (`LiveView`), or Milvus (`LiveMilvus`)."""

import sqlite3
from contextlib import AbstractContextManager
from typing import Any, Protocol

from embed.data.vectors import Vectors
from embed.network.corpus_map import CorpusMap
from index.dense.scores import Scores, Spread, best
from index.store.store import Numbers, Store


class DenseView(Protocol):
    """All vectors in one state of the store."""

    @property
    def corpus_map(self) -> CorpusMap:
        """The map to be applied to queries."""

    def __len__(self) -> int: ...

    def is_exact(self, k: int, allowed: Numbers | None) -> bool:
        """Whether a search for k passages among the ids `allowed` (None for all) ranks all of them by their vectors."""

    def search(
        self, queries: Vectors, k: int, allowed: Numbers | None = None
    ) -> list[tuple[Numbers, Scores]]:
        """Ids (k,) and cosines (k,) of the k nearest passages for each mapped query (Q, d), nearest first."""

    def score(self, query: Vectors, numbers: Numbers) -> Scores:
        """Cosines (n,) of a mapped query (d,) with the passages of ids `numbers` (n,), all of which must exist."""

    def rows(self, numbers: Numbers) -> Vectors:
        """The mapped vectors (n, d) of the passages with ids `numbers` (n,)."""

    def spread(self, query: Vectors) -> Spread:
        """Mean and deviation of a mapped query's (d,) cosines with all passages."""


def best_among(view: DenseView, query: Vectors, numbers: Numbers, k: int) -> tuple[Numbers, Scores]:
    """Of the passages with ids `numbers` (n,) the k nearest to a mapped query (d,), all scored: ids and cosines."""
    scores = view.score(query, numbers)
    first = best(scores, k)
    return numbers[first], scores[first]


class LiveVectors(Protocol):
    """The vectors in the newest state of `store`, shared by all threads that search."""

    store: Store

    def current(self) -> AbstractContextManager[tuple[sqlite3.Connection, DenseView]]:
        """A read transaction and the view of the vectors in the state that the transaction sees."""

    def save_snapshot(self) -> None:
        """Save the current state, so that the next process searches at once."""

    def forget_deletions(self, at_least: int | None = None) -> None:
        """Delete the records of those deletions that were saved, if there are so many."""

    def report(self) -> dict[str, Any] | None:
        """How the vectors are searched, JSON-serialisable; None if nothing was saved yet."""

    def close(self) -> None:
        """Close the store and what holds the vectors."""
