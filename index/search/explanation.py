"""How a hit's score comes about: the retrievers' shares of it, and the words' shares of BM25."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from index.dense.scores import Scores, Spread


class Share(NamedTuple):
    """A retriever's share of a passage's score; the shares sum to the score.

    `share` = `weight` · (`score` - `offset`) / `scale`; where ranks are fused, `weight` / (k + `rank`).

    Attributes:
        share: the share.
        score: cosine or BM25.
        weight: the retriever's; 0 where the words of the query have no influence.
        offset, scale: what normalises the score: the least and the range of scores, or their mean and deviation.
        rank: the passage's rank among the candidates, from 1; None where scores are fused, or for a passage without
            words of the query.
    """

    share: float
    score: float
    weight: float = 1.0
    offset: float = 0.0
    scale: float = 1.0
    rank: int | None = None


@dataclass(frozen=True)
class Shares:
    """A retriever's shares (n,) of the scores of candidates; see `Share`."""

    shares: Scores
    scores: Scores
    weight: float
    offset: float = 0.0
    scale: float = 1.0
    ranks: NDArray[np.int64] | None = None

    @classmethod
    def scaled(cls, scores: Scores, spread: Spread, weight: float) -> "Shares":
        """The shares of scores that `spread` normalises."""
        offset, scale = spread.mean, spread.deviation or 1.0
        shares = weight * ((scores - np.float32(offset)) / np.float32(scale))
        return cls(shares, scores, weight, offset, scale)

    def of(self, places: NDArray[np.int64]) -> list[Share]:
        """The shares of some candidates."""
        shares, scores = self.shares[places].tolist(), self.scores[places].tolist()
        ranks = [None] * len(shares) if self.ranks is None else self.ranks[places].tolist()
        return [
            Share(share, score, self.weight, self.offset, self.scale, rank if share else None)
            for share, score, rank in zip(shares, scores, ranks, strict=True)
        ]


class Term(NamedTuple):
    """A word, or words that follow each other, of the query in a passage.

    Attributes:
        words: the words, case-folded; with * at the end, a character that begins a term.
        frequency: how often the passage has them.
        in_query: how often the query has them.
        idf: inverse document frequency over all passages, as FTS5's bm25() has it.
        share: their share of the passage's BM25; the terms' shares sum to it.
    """

    words: str
    frequency: int
    in_query: int
    idf: float
    share: float


@dataclass(frozen=True)
class Explanation:
    """How a hit's score comes about.

    Attributes:
        dense, lexical: the retrievers' shares of the score; None for one that was not used.
        terms: the words of the query that the passage has, the largest share of BM25 first.
    """

    dense: Share | None
    lexical: Share | None
    terms: tuple[Term, ...] = ()
