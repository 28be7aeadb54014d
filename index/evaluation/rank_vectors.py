"""An index's ranking without an index: of vectors that are there already, for many systems over one collection."""

import tempfile
from contextlib import closing
from pathlib import Path

import numpy as np

from embed.data.vectors import Vectors
from embed.network.config import Fusion
from embed.network.corpus_map import CorpusMap
from index.dense.snapshot import Snapshot, State
from index.dense.view import View
from index.evaluation.collection import Collection, Run
from index.index import Index
from index.search.hits import Ranked
from index.search.matches import Matches
from index.search.rank import rank_dense, rank_hybrid
from index.store.store import Store

QUERIES = 256  # at a time: their candidates' scores fit in a cache


class Legs:
    """A collection's lexical leg, made once, to which any system's vectors can be the dense one.

    Each document is one passage: what `Index.search` would answer were it to hold these vectors in float32.
    """

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        texts = collection.queries.values()
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch, "index")
            with Index.create(folder, dimension=1) as index:
                index.add(collection.documents.values(), np.ones((len(collection.documents), 1)))
            with closing(Store(folder)) as store, store.read() as tx:
                self._numbers = store.vectors_after(tx, 0)[0]
                self._matches = [Matches.find(store, tx, text, None) for text in texts]
        self._names = dict(zip(self._numbers.tolist(), collection.documents, strict=True))

    def dense(self, queries: Vectors, documents: Vectors, k: int) -> Run:
        """For each query the `k` nearest documents; vectors (Q, d) and (n, d) are mapped already."""
        view = self._view(documents)
        starts = range(0, len(queries), QUERIES)
        return self._run([r for i in starts for r in rank_dense(view, queries[i : i + QUERIES], k, None)])

    def hybrid(self, queries: Vectors, documents: Vectors, k: int, fusion: Fusion) -> Run:
        """For each query the `k` best documents by both legs."""
        view = self._view(documents)
        starts = range(0, len(queries), QUERIES)
        return self._run(
            [
                ranked
                for i in starts
                for ranked in rank_hybrid(
                    view, queries[i : i + QUERIES], self._matches[i : i + QUERIES], k, None, fusion
                )
            ]
        )

    def _view(self, documents: Vectors) -> View:
        state = State("", "", int(self._numbers[-1]))
        snapshot = Snapshot.of(self._numbers, np.ascontiguousarray(documents), state)
        return View(snapshot, self._numbers[:0], self._numbers[:0], documents[:0], state, CorpusMap())

    def _run(self, results: list[list[Ranked]]) -> Run:
        return {
            query: {self._names[ranked.number]: ranked.score for ranked in result}
            for query, result in zip(self._collection.queries, results, strict=True)
        }
