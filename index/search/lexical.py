"""The lexical retriever: a query as an expression of SQLite's FTS5, and the passages that match it, with BM25 scores.

FTS5's tokenizer treats a run of Chinese characters as one word. Such runs are therefore split into overlapping bigrams,
in indexed texts and in queries (like Lucene's CJKBigramFilter), and English stop words are removed. FTS5 then folds
case and diacritics and applies Porter's stemmer (`FTS5_TOKENIZER`).
"""

import sqlite3
from typing import NamedTuple

import numpy as np

from embed.text.terms import bigrams, terms
from index.dense.scores import Scores, Spread
from index.store.store import Numbers, Store

# FTS5's search time grows with the number of terms; more terms do not help to find a long pasted text.
MAX_TERMS = 1024


def match_expression(query: str) -> str | None:
    """A valid FTS5 expression that matches any term of `query`, or None if the query has no terms."""
    found: list[str] = []
    for run, word in terms(query):
        if len(run) == 1:
            found.append(f'"{run}" *')
        else:
            found += [f'"{term}"' for term in (bigrams(run) if run else [word])]
        if len(found) >= MAX_TERMS:
            break
    return " OR ".join(found[:MAX_TERMS]) or None


class Matches(NamedTuple):
    """All passages in which a term of the query occurs: ids (n,), sorted ascending, and BM25 scores (n,)."""

    numbers: Numbers
    scores: Scores

    @classmethod
    def find(cls, store: Store, tx: sqlite3.Connection, text: str, allowed: Numbers | None) -> "Matches":
        """The matches of a query's `text` among the passages with ids `allowed`; None for all passages."""
        expression = match_expression(text)
        if expression is None:  # only stop words and punctuation
            return cls(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32))
        numbers, scores = store.lexical_scores(tx, expression)
        keep = slice(None) if allowed is None else np.isin(numbers, allowed)
        return cls(numbers[keep], scores[keep])

    def of(self, numbers: Numbers) -> Scores:
        """BM25 scores (m,) of the passages with ids `numbers` (m,); 0 for passages that do not match."""
        if not len(self.numbers):
            return np.zeros(len(numbers), dtype=np.float32)
        places = np.minimum(np.searchsorted(self.numbers, numbers), len(self.numbers) - 1)
        return np.where(self.numbers[places] == numbers, self.scores[places], 0)

    def spread(self, n_passages: int) -> Spread:
        """Mean and deviation over all `n_passages` passages; those that do not match score 0."""
        if not n_passages:
            return Spread(0, 0)
        scores = self.scores.astype(np.float64)
        mean = scores.sum() / n_passages
        return Spread(mean, float(np.sqrt(max(scores @ scores / n_passages - mean**2, 0))))
