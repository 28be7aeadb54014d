"""Hits in the order of a language model, which reads query and passage together."""

from collections.abc import Sequence
from dataclasses import replace

from embed.data.beir import join_title
from embed.encoding.rerank import Reranker
from index.search.rank import Hit


def rerank_hits(reranker: Reranker, query: str, hits: Sequence[Hit], n: int) -> list[Hit]:
    """The hits, the first `n` of which in the order of log p(query | title and text), as `Hit.reranked`.

    Raises:
        InputError: for a query that leaves no space for a passage in the model's context.
    """
    texts = [join_title(hit.title, hit.text) for hit in hits[:n]]
    best = [replace(hits[i], reranked=score) for i, score in reranker.rerank(query, texts)]
    return best + list(hits[n:])
