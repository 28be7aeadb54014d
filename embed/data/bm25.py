"""BM25 by bm25s: the lexical baseline of evaluations, and a source of hard negatives."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embed.data.vectors import Vectors
from embed.text.analysis import index_terms, stems
from gpt_core.common.extras import extra


class BM25:
    """A BM25 index: Lucene's variant, k1 1.5, b 0.75, of the terms of `embed.text.analysis` and their Porter stems."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Index at least one text."""
        with extra("eval"):
            import bm25s
        self.n_texts = len(texts)
        tokens = _tokenize(texts)
        # bm25s cannot index an empty vocabulary; without one, all scores are 0.
        self._ranker = bm25s.BM25(method="lucene", k1=1.5, b=0.75) if tokens.vocab else None
        if self._ranker is not None:
            self._ranker.index(tokens, show_progress=False)

    def search(self, queries: Sequence[str], k: int) -> tuple[NDArray[np.integer], Vectors]:
        """Positions (Q, k) and scores (Q, k) of the best texts for each query, highest score first.

        k is at most the number of texts. A score of 0 means that query and text share no word.
        """
        if self._ranker is None:
            return np.tile(np.arange(k), (len(queries), 1)), np.zeros((len(queries), k), dtype=np.float32)
        return self._ranker.retrieve(_tokenize(queries), k=k, show_progress=False)

    def scores(self, queries: Sequence[str]) -> Vectors:
        """Scores (Q, n) float32 of every text for each query."""
        scores = np.zeros((len(queries), self.n_texts), dtype=np.float32)
        if self._ranker is not None:
            tokens = _tokenize(queries)
            names = {token_id: term for term, token_id in tokens.vocab.items()}
            for row, ids in zip(scores, tokens.ids, strict=True):
                known = self._ranker.get_tokens_ids([names[i] for i in ids])
                if known:
                    row[:] = self._ranker.get_scores(known)
        return scores


def _tokenize(texts: Sequence[str]) -> Any:
    with extra("eval"):
        from bm25s.tokenization import Tokenized
    # The last character of a run is a term for prefix queries only.
    found = [[w for w in index_terms(text).words if len(w) > 1 or w.isascii()] for text in texts]
    stem = stems({word for words in found for word in words})
    ids: dict[str, int] = {}
    return Tokenized([[ids.setdefault(stem[word], len(ids)) for word in words] for words in found], ids)
