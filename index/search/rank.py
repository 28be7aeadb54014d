"""Ranking the passages of one state of an index for a query: dense, lexical, or both."""

import json
import sqlite3
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from embed.network.config import Fusion
from embed.network.corpus_map import Vectors
from index.dense.view import View
from index.reading.passages import passage_id
from index.search.expression import match_expression
from index.search.fusion import Scores, Spread, fuse
from index.store.store import Numbers, Store


class Ranked(NamedTuple):
    """A passage's place in a result: its number and scores; None for a leg that was not asked."""

    number: int
    score: float
    dense: float | None
    lexical: float | None


@dataclass(frozen=True)
class Hit:
    """A passage that a search found.

    Attributes:
        passage_id, doc_id, title, text: which passage, of which document.
        start, end: offsets in Unicode code points into the document's text.
        score: what the result is ordered by; comparable within one result only.
        dense: cosine of query and passage; None if the dense leg was not asked.
        lexical: BM25, 0 where no term of the query occurs; None if the lexical leg was not asked.
        metadata: the document's.
    """

    passage_id: str
    doc_id: str
    title: str
    text: str
    start: int
    end: int
    score: float
    dense: float | None
    lexical: float | None
    metadata: dict[str, Any]

    @classmethod
    def of(cls, ranked: Ranked, row: dict[str, Any]) -> "Hit":
        """The hit for a passage's place in a result and its row in the store."""
        name = passage_id(row["doc_id"], row["start"], row["end"])
        row = {**row, "metadata": json.loads(row["metadata"])}
        return cls(passage_id=name, score=ranked.score, dense=ranked.dense, lexical=ranked.lexical, **row)


class Matches(NamedTuple):
    """All passages in which a term of the query occurs: numbers (n,), rising, and BM25 (n,)."""

    numbers: Numbers
    scores: Scores

    @classmethod
    def find(cls, store: Store, tx: sqlite3.Connection, text: str, allowed: Numbers | None) -> "Matches":
        """The matches of a query's `text` among the passages `allowed`; None: all."""
        expression = match_expression(text)
        if expression is None:  # nothing but stop words and punctuation
            return cls(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32))
        numbers, scores = store.lexical_scores(tx, expression)
        keep = slice(None) if allowed is None else np.isin(numbers, allowed)
        return cls(numbers[keep], scores[keep])

    def of(self, numbers: Numbers) -> Scores:
        """The BM25 (m,) of the passages `numbers` (m,); 0 for one that does not match."""
        if not len(self.numbers):
            return np.zeros(len(numbers), dtype=np.float32)
        places = np.minimum(np.searchsorted(self.numbers, numbers), len(self.numbers) - 1)
        return np.where(self.numbers[places] == numbers, self.scores[places], 0)

    def spread(self, n_passages: int) -> Spread:
        """Mean and deviation over all `n_passages`, of which those that do not match score 0."""
        if not n_passages:
            return Spread(0, 0)
        scores = self.scores.astype(np.float64)
        mean = scores.sum() / n_passages
        return Spread(mean, float(np.sqrt(max(scores @ scores / n_passages - mean**2, 0))))


def rank_lexical(matches: Matches, k: int) -> list[Ranked]:
    """The `k` best matches."""
    best = _best(matches.scores, k)
    pairs = zip(matches.numbers[best].tolist(), matches.scores[best].tolist(), strict=True)
    return [Ranked(number, score, None, score) for number, score in pairs]


def rank_dense(view: View, queries: Vectors, k: int, allowed: Numbers | None) -> list[list[Ranked]]:
    """For each of the mapped `queries` (Q, d) the `k` nearest passages, among those `allowed` if that is given."""
    results = []
    for numbers, scores in _nearest(view, queries, k, allowed):
        pairs = zip(numbers.tolist(), scores.tolist(), strict=True)
        results.append([Ranked(number, score, score, None) for number, score in pairs])
    return results


def rank_hybrid(
    view: View, queries: Vectors, matches: list[Matches], k: int, allowed: Numbers | None, fusion: Fusion
) -> list[list[Ranked]]:
    """For each query the `k` best passages by both legs.

    Each leg proposes its best candidates; all of them get exact scores from both legs, and these are combined. With a
    filter, the passages `allowed` are the corpus over which scores are normalised.

    Args:
        view: the vectors.
        queries: (Q, d), mapped.
        matches: Q of them, within `allowed`.
        k: how many passages a query gets.
        allowed: the passages to search; None for all.
        fusion: how scores are combined.
    """
    n_candidates = max(100, 10 * k)
    n_passages = len(view) if allowed is None else len(allowed)
    results = []
    for query, found, (nearest, _) in zip(
        queries, matches, _nearest(view, queries, n_candidates, allowed), strict=True
    ):
        candidates = np.union1d(nearest, found.numbers[_best(found.scores, n_candidates)])
        dense, lexical = view.score(query, candidates), found.of(candidates)
        spread = Spread(0, 0)
        if fusion.kind == "z":
            spread = view.spread(query) if allowed is None else Spread.of(view.score(query, allowed))
        scores = fuse(fusion, dense, lexical, spread, found.spread(n_passages))
        best = _best(scores, k)
        columns = (candidates[best], scores[best], dense[best], lexical[best])
        results.append([Ranked(*row) for row in zip(*(c.tolist() for c in columns), strict=True)])
    return results


def _nearest(view: View, queries: Vectors, k: int, allowed: Numbers | None) -> list[tuple[Numbers, Scores]]:
    if allowed is None:
        return view.search(queries, k)
    # An exact search among the rows that pass the filter: it finds k if there are k, however few pass.
    results = []
    for query in queries:
        scores = view.score(query, allowed)
        best = _best(scores, k)
        results.append((allowed[best], scores[best]))
    return results


def _best(scores: Scores, k: int) -> Numbers:
    """Places of the `k` highest scores, highest first; of equal ones the earlier first."""
    if k < len(scores):
        least = np.partition(scores, len(scores) - k)[len(scores) - k]
        places = np.flatnonzero(scores >= least)
    else:
        places = np.arange(len(scores))
    return places[np.argsort(-scores[places], kind="stable")][:k]
