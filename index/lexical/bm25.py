"""BM25 scores by postings, exactly as SQLite's FTS5 computes them, for one state of the store."""

import math
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embed.text.analysis import Phrase, stems
from index.lexical.postings import Postings
from index.store.store import Numbers
from index.store.words import lexical_scores, phrase_expression

K1, B = 1.2, 0.75  # those of FTS5's bm25()
LEAST_IDF = 1e-6  # what FTS5 gives a phrase that is in half of the passages or more


def inverse_frequency(n_passages: int, n: int) -> float:
    """FTS5's inverse document frequency of a phrase that `n` of the passages have."""
    idf = math.log((n_passages - n + 0.5) / (n + 0.5))
    return idf if idf > 0 else LEAST_IDF


@dataclass(frozen=True, eq=False)
class Bm25:
    """The postings of one table of the full text in one state of the store; immutable.

    Attributes:
        table: the table's name.
        parts: postings whose ids ascend from part to part.
        deleted: ids of passages that are deleted since, sorted ascending.
    """

    table: str
    parts: tuple[Postings, ...]
    deleted: Numbers

    def scores(
        self, tx: sqlite3.Connection, phrases: Sequence[Phrase]
    ) -> tuple[Numbers, NDArray[np.float64]]:
        """The passages that have any of `phrases`: ids (n,), sorted ascending, and scores (n,).

        `tx` sees the same state; phrases of several words are looked up there.
        """
        totals = [np.zeros(len(part.numbers)) for part in self.parts]
        stem = stems({word for phrase in phrases for word in phrase.words})
        for phrase in phrases:
            if len(phrase.words) > 1:
                numbers, shares = lexical_scores(tx, self.table, phrase_expression(phrase))
                for part, total in zip(self.parts, totals, strict=True):
                    rows = np.searchsorted(part.numbers, numbers)
                    inside = rows < len(part.numbers)
                    inside[inside] = part.numbers[rows[inside]] == numbers[inside]
                    total[rows[inside]] += shares[inside]
                continue
            found = self._found(stem[phrase.words[0]], phrase.is_prefix)
            idf = inverse_frequency(self._sizes[0], sum(len(rows) for rows, _ in found))
            for (rows, counts), norms, total in zip(found, self._norms, totals, strict=True):
                total[rows] += idf * (counts * (K1 + 1)) / (counts + norms[rows])
        matches = [np.flatnonzero(total) for total in totals]
        pairs = list(zip(self.parts, totals, matches, strict=True))
        return (
            np.concatenate([part.numbers[rows] for part, _, rows in pairs]),
            np.concatenate([total[rows] for _, total, rows in pairs]),
        )

    def _found(self, stem: str, is_prefix: bool) -> list[tuple[Any, Any]]:
        """For each part the rows and counts of a phrase of one word, without deleted passages."""
        found = []
        for part, live in zip(self.parts, self._live, strict=True):
            rows, counts = part.of(stem, is_prefix)
            if live is not None:
                keep = live[rows]
                rows, counts = rows[keep], counts[keep]
            found.append((rows, counts))
        return found

    @cached_property
    def _live(self) -> list[NDArray[np.bool_] | None]:
        """For each part which rows are not deleted; None for all."""
        masks = [~np.isin(part.numbers, self.deleted) for part in self.parts]
        return [None if mask.all() else mask for mask in masks]

    @cached_property
    def _sizes(self) -> tuple[int, int]:
        """The numbers of passages and of their terms."""
        lengths = [
            part.lengths if live is None else part.lengths[live]
            for part, live in zip(self.parts, self._live, strict=True)
        ]
        return sum(map(len, lengths)), sum(int(some.sum()) for some in lengths)

    @cached_property
    def _norms(self) -> list[NDArray[Any]]:
        """For each part the term of BM25's denominator that depends on the passage's length."""
        n_passages, n_terms = self._sizes
        average = n_terms / max(n_passages, 1) or 1
        return [K1 * (1 - B + B * part.lengths / average) for part in self.parts]
