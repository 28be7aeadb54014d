"""A query's words, and the passages that have any of them, with BM25 scores: by postings, else by SQLite's FTS5.

`embed.text.analysis` finds the words of indexed texts and of queries; FTS5 then applies Porter's stemmer.
"""

import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from embed.text.analysis import Phrase, query_terms
from index.dense.scores import Scores, Spread
from index.lexical.live import LiveWords
from index.store.store import Numbers
from index.store.words import lexical_scores, phrase_expression

# FTS5's search time grows with the number of terms; more terms do not help to find a long pasted text.
MAX_TERMS = 1024


def match_expression(phrases: Sequence[Phrase]) -> str:
    """A valid FTS5 expression that matches any of at least one phrase."""
    return " OR ".join(map(phrase_expression, phrases[:MAX_TERMS]))


def find_phrases(
    live: LiveWords, tx: sqlite3.Connection, table: str, phrases: Sequence[Phrase]
) -> tuple[Numbers, NDArray[np.float64]]:
    """The passages that have any of at least one phrase: ids (n,), sorted ascending, and BM25 scores (n,)."""
    words = live.current(tx)
    if words:
        return words.tables[table].scores(tx, phrases[:MAX_TERMS])
    return lexical_scores(tx, table, match_expression(phrases))


class Matches(NamedTuple):
    """All passages in which a term of the query occurs: ids (n,), sorted ascending, and BM25 scores (n,)."""

    numbers: Numbers
    scores: Scores

    @classmethod
    def find(cls, live: LiveWords, tx: sqlite3.Connection, text: str, allowed: Numbers | None) -> "Matches":
        """The matches of a query's `text` among the passages with ids `allowed`; None for all passages."""
        query = query_terms(text)
        if not query.phrases:  # only punctuation
            return cls(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32))
        table = "lexical_stop_words" if query.only_stop_words else "lexical"
        numbers, exact = find_phrases(live, tx, table, query.phrases)
        scores = exact.astype(np.float32)
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
