"""Rank precomputed vectors with the index's own code, so that several embedders can share one BM25 retriever."""

import tempfile
from contextlib import closing
from pathlib import Path

import numpy as np

from embed.data.vectors import Vectors
from embed.network.config import Fusion
from embed.network.corpus_map import CorpusMap
from index.dense.block import Block
from index.dense.manifest import State
from index.dense.snapshot import Snapshot
from index.dense.view import View
from index.evaluation.collection import Collection, Run
from index.index import Index
from index.lexical.live import LiveWords
from index.lexical.matches import Matches
from index.search.rank import Ranked, rank_dense, rank_hybrid
from index.store.store import Store

QUERIES_PER_BATCH = 256  # the scores of their candidates fit in the CPU cache


class Retrievers:
    """A collection's lexical retriever, built once, combined with dense retrieval over any system's vectors.

    Each document is one passage. The rankings equal those of `Index.search` with these vectors stored in float32.
    """

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        texts = collection.queries.values()
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch, "index")
            with Index.create(folder, dimension=1) as index:
                index.add(collection.documents.values(), np.ones((len(collection.documents), 1)))
            with closing(Store(folder)) as store, store.read() as tx:
                self._numbers = np.concatenate([numbers for numbers, _ in store.vector_blocks(tx, 0)])
                words = LiveWords(store)
                self._matches = [Matches.find(words, tx, text, None) for text in texts]
        self._names = dict(zip(self._numbers.tolist(), collection.documents, strict=True))

    def dense(self, queries: Vectors, documents: Vectors, k: int) -> Run:
        """The `k` nearest documents of each query, for mapped vectors `queries` (Q, d) and `documents` (n, d)."""
        view = self._view(documents)
        size = QUERIES_PER_BATCH
        starts = range(0, len(queries), size)
        return self._run([r for i in starts for r in rank_dense(view, queries[i : i + size], k, None)])

    def hybrid(self, queries: Vectors, documents: Vectors, k: int, fusion: Fusion) -> Run:
        """The `k` best documents of each query by the fused dense and lexical scores; vectors as in `dense`."""
        view = self._view(documents)
        size = QUERIES_PER_BATCH
        starts = range(0, len(queries), size)
        return self._run(
            [
                ranked
                for i in starts
                for ranked in rank_hybrid(
                    view, queries[i : i + size], self._matches[i : i + size], k, None, fusion
                )
            ]
        )

    def _view(self, documents: Vectors) -> View:
        state = State("", "", int(self._numbers[-1]))
        block = Block(self._numbers, np.ascontiguousarray(documents))
        base = Snapshot.of(0, documents.shape[1], (), State("", "", 0))
        return View(base, (block,), self._numbers[:0], state, CorpusMap())

    def _run(self, results: list[list[Ranked]]) -> Run:
        return {
            query: {self._names[ranked.number]: ranked.score for ranked in result}
            for query, result in zip(self._collection.queries, results, strict=True)
        }
