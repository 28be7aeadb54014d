"""Search a collection with a real `Index`, as users do: passages, FTS5's BM25, the index's number format and fusion."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from embed.data.vectors import Vectors
from embed.encoding.encoder import Encoder
from embed.encoding.vector_cache import cached_vectors
from index.evaluation.collection import Collection, Run
from index.index import Index
from index.search.search import Mode

QUERIES_PER_BATCH = 256


class CachingEncoder(Encoder):
    """An `Encoder` that saves the vectors of documents in the vector cache.

    The cache key contains the whole block of texts of a call, so a cached vector is the one that the same call computed
    before.
    """

    def encode_document(self, texts: str | Sequence[str], **options: Any) -> Vectors:
        """As in `Encoder`; `n_truncated` also counts texts whose vectors come from the cache."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        before, prompt = self.n_truncated, self.prompt("document")
        identity = f"{self.fingerprint} {self.dtype} {prompt!r} {sorted(options.items())}"
        vectors = cached_vectors(identity, texts, lambda block: self.encode(block, "document", **options))
        if self.n_truncated == before:  # no text is too long, or all are from the cache
            self.n_truncated += sum(n > self.max_tokens for n in self.count_tokens(texts, prompt))
        return vectors


@contextmanager
def built_index(collection: Collection, encoder: Encoder, max_tokens: int | None = None) -> Iterator[Index]:
    """An index of the collection's documents in a temporary folder, built by `Index.create` and `Index.add`.

    Args:
        collection: the collection.
        encoder: the embedder; its settings decide number format, corpus map and fusion.
        max_tokens: longest passage in tokens, at most the embedder's own limit; None: the default of `Index.create`.

    Raises:
        InputError: for a max_tokens that `Index.create` refuses.
    """
    with (
        tempfile.TemporaryDirectory() as scratch,
        Index.create(
            Path(scratch, "index"),
            encoder,
            max_tokens=None if max_tokens is None else min(max_tokens, encoder.max_tokens),
        ) as index,
    ):
        documents = collection.documents.values()
        index.add(tqdm(documents, f"indexing {collection.name}", disable=None, leave=False))
        yield index


def search_documents(index: Index, queries: dict[str, str], mode: Mode, k: int) -> Run:
    """The `k` best documents of each query by `Index.search`; a document has the score of its best passage.

    Each query is searched with twice as many passages until they belong to `k` documents or the index has no more.

    Args:
        index: the index.
        queries: texts by id. A query without text, which the index refuses, has no results.
        mode: mode of the search.
        k: number of documents; fewer are returned only if fewer are in the index or, for "lexical", match.
    """
    run: Run = {}
    waiting = [query for query, text in queries.items() if text.strip()]
    n_passages = 2 * k
    while waiting:
        for start in range(0, len(waiting), QUERIES_PER_BATCH):
            batch = waiting[start : start + QUERIES_PER_BATCH]
            results = index.search([queries[query] for query in batch], n_passages, mode)
            for query, hits in zip(batch, results, strict=True):
                best: dict[str, float] = {}
                for hit in hits:  # best first
                    best.setdefault(hit.doc_id, hit.score)
                if len(best) >= k or len(hits) < n_passages:
                    run[query] = dict(islice(best.items(), k))
        waiting = [query for query in waiting if query not in run]
        n_passages *= 2
    return run
