"""Dense, lexical and hybrid ranking of the passages in one state of an index: fused scores, best hits."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embed.data.vectors import Vectors
from embed.network.config import Fusion
from index.dense.backend import DenseView
from index.dense.scores import Scores, Spread, best
from index.lexical.matches import Matches
from index.reading.document import passage_id
from index.reading.pages import PageRange, pages_in_json
from index.search.explanation import Explanation, Share, Shares
from index.store.store import Numbers

# FTS5 gives a word that is in more than half of the passages an IDF of 1e-6. Where all scores are below this limit, the
# query has no rarer word, and BM25 differs only by the passages' lengths.
MIN_BM25 = 1e-3


class Ranked(NamedTuple):
    """A ranked passage: its id in the store and its scores; None for a retriever that was not used.

    `shares`: the dense and the lexical retriever's, if they were fused.
    """

    number: int
    score: float
    dense: float | None
    lexical: float | None
    shares: tuple[Share, Share] | None = None


@dataclass(frozen=True)
class Hit:
    """A passage that a search found.

    Attributes:
        passage_id, text: the passage.
        doc_id, title: its document.
        start, end: offsets in Unicode code points into the document's text.
        score: the score that hits are sorted by; comparable within one search only.
        dense: cosine of query and passage; None if dense search was not used.
        lexical: BM25, 0 if no term of the query occurs; None if lexical search was not used.
        metadata: the document's metadata.
        pages: the pages of the document that the passage is on; None for a document without pages.
        headings: those of the section in which the passage begins, the outermost first.
        explanation: how the score comes about; None unless it was asked for.
        reranked: log-probability of the query after the passage, by which re-ranked hits are sorted instead; else None.
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
    pages: PageRange | None = None
    headings: tuple[str, ...] = ()
    explanation: Explanation | None = None
    reranked: float | None = None

    @classmethod
    def of(cls, ranked: Ranked, row: dict[str, Any], explanation: Explanation | None = None) -> "Hit":
        """The hit for a ranked passage and its row in the store."""
        name = passage_id(row["doc_id"], row["start"], row["end"])
        pages = row["pages"]
        where = pages_in_json(pages, row["start"], row["end"]) if pages else None
        parsed = {"metadata": json.loads(row["metadata"]), "headings": tuple(json.loads(row["headings"]))}
        row = {**row, **parsed, "pages": where}
        scores: dict[str, Any] = {"score": ranked.score, "dense": ranked.dense, "lexical": ranked.lexical}
        return cls(passage_id=name, explanation=explanation, **scores, **row)


class Hits(list[Hit]):
    """The hits of one search, best first.

    Attributes:
        exact: whether all passages, or all that pass the filter, were ranked. Hybrid search ranks only the best
            candidates of each retriever; of many vectors, dense search looks at those that are probably near.
    """

    def __init__(self, hits: Iterable[Hit], *, exact: bool) -> None:
        super().__init__(hits)
        self.exact = exact


def rank_lexical(matches: Matches, k: int) -> list[Ranked]:
    """The `k` matches with the highest BM25."""
    first = best(matches.scores, k)
    pairs = zip(matches.numbers[first].tolist(), matches.scores[first].tolist(), strict=True)
    return [Ranked(number, score, None, score) for number, score in pairs]


def rank_dense(view: DenseView, queries: Vectors, k: int, allowed: Numbers | None) -> list[list[Ranked]]:
    """The `k` nearest passages for each mapped query (Q, d), among the passage ids `allowed` (None for all)."""
    results = []
    for numbers, scores in view.search(queries, k, allowed):
        pairs = zip(numbers.tolist(), scores.tolist(), strict=True)
        results.append([Ranked(number, score, score, None) for number, score in pairs])
    return results


def rank_hybrid(
    view: DenseView,
    queries: Vectors,
    matches: Iterable[Matches],
    k: int,
    allowed: Numbers | None,
    fusion: Fusion,
) -> list[list[Ranked]]:
    """The `k` best passages for each query by fused dense and lexical scores.

    The best candidates of each retriever are taken; all candidates get exact scores from both, which are fused. With a
    filter, scores are normalised over the passages `allowed`.

    Args:
        view: the vectors.
        queries: (Q, d), mapped.
        matches: Q lexical results within `allowed`; only one at a time needs to be in memory.
        k: number of passages per query.
        allowed: ids of the passages to search; None for all.
        fusion: kind and weight of the fusion.
    """
    n_candidates = max(100, 10 * k)
    n_passages = len(view) if allowed is None else len(allowed)
    results = []
    for query, found, (nearest, _) in zip(
        queries, matches, view.search(queries, n_candidates, allowed), strict=True
    ):
        candidates = np.union1d(nearest, found.numbers[best(found.scores, n_candidates)])
        dense, lexical = view.score(query, candidates), found.of(candidates)
        spread = Spread(0, 0)
        if fusion.kind == "z":
            spread = view.spread(query) if allowed is None else Spread.of(view.score(query, allowed))
        shares = fuse(fusion, dense, lexical, spread, found.spread(n_passages))
        scores = shares[0].shares + shares[1].shares
        first = best(scores, k)
        columns = (candidates[first], scores[first], dense[first], lexical[first])
        pairs = zip(*(part.of(first) for part in shares), strict=True)
        rows = zip(*(c.tolist() for c in columns), pairs, strict=True)
        results.append([Ranked(*row) for row in rows])
    return results


def fuse(
    fusion: Fusion, dense: Scores, lexical: Scores, dense_spread: Spread, lexical_spread: Spread
) -> tuple[Shares, Shares]:
    """Fuse the dense and lexical scores of one query's candidates.

    "tm2c2" and "z" combine scores: a retriever that finds nothing relevant scores all candidates nearly equally and so
    has little influence. "rrf" combines ranks, which do not show that, and can fall far below the better retriever.
    BM25 has no influence where no candidate reaches `MIN_BM25`.

    Args:
        fusion: kind and weight.
        dense: (n,) cosines.
        lexical: (n,) BM25, 0 where no term of the query occurs.
        dense_spread, lexical_spread: mean and deviation of this query's scores over the corpus; used by "z" only.

    Returns:
        The shares of the dense and the lexical retriever, whose sum is the score, higher is better: for "tm2c2" a
        convex combination of min-max scores with theoretical minima (Bruch et al. 2022), for "z" of standard scores;
        for "rrf" a sum of 1 / (k + rank) (Cormack et al. 2009).
    """
    has_words = bool(lexical.max(initial=0) >= MIN_BM25)
    if not has_words:
        lexical, lexical_spread = np.zeros_like(lexical), Spread(0, 0)
    if fusion.kind == "rrf":
        by_words = np.where(lexical > 0, 1 / (fusion.k + _ranks(lexical)), 0)
        by_vectors = 1 / (fusion.k + _ranks(dense))
        return (
            Shares(by_vectors.astype(np.float32), dense, 1.0, ranks=_ranks(dense)),
            Shares(by_words.astype(np.float32), lexical, float(has_words), ranks=_ranks(lexical)),
        )
    if fusion.kind == "tm2c2":
        dense_spread, lexical_spread = Spread(-1, 2), Spread(0, float(lexical.max(initial=0)))
    weight = fusion.dense_weight
    return (
        Shares.scaled(dense, dense_spread, weight),
        Shares.scaled(lexical, lexical_spread, (1 - weight) * has_words),
    )


def _ranks(scores: Scores) -> NDArray[np.int64]:
    """Ranks (n,), 1 for the highest score; equal scores are ranked in their order."""
    ranks = np.empty(len(scores), dtype=np.int64)
    ranks[np.argsort(-scores, kind="stable")] = np.arange(1, len(scores) + 1)
    return ranks
