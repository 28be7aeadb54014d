"""One search of an index: of texts or vectors, in any mode, with a filter; and the choice among ranked passages."""

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypedDict, cast, get_args

import numpy as np
from numpy.typing import ArrayLike

from embed.data.vectors import Vectors
from embed.encoding.embedder import Embedder
from embed.encoding.rerank import Reranker
from gpt_core.common.errors import InputError
from index.dense.backend import DenseView, LiveVectors
from index.lexical.live import LiveWords
from index.lexical.matches import Matches
from index.search.explain import explain
from index.search.filters import Filter, allowed
from index.search.rank import Hit, Hits, Ranked, rank_dense, rank_hybrid, rank_lexical
from index.search.rerank import rerank_hits
from index.store.store import Numbers, Store
from index.store.write import check_vectors

Mode = Literal["hybrid", "dense", "lexical"]
Rank = Callable[[int], list[list[Ranked]]]  # the n best passages for each query
N_RERANKED = 20  # hits that a language model orders again
POOL = 50  # least number of passages that diverse ones are chosen from


class MoreOptions(TypedDict, total=False):
    """The further options of `Index.search`; `Options` has their defaults."""

    offset: int
    per_document: int | None
    diversity: float
    explain: bool
    rerank: Reranker | None
    n_reranked: int


@dataclass(frozen=True)
class Options:
    """What is searched for, and how; see `Index.search`.

    Raises:
        InputError: for a value out of range.
    """

    k: int = 10
    mode: Mode = "hybrid"
    filter: Filter | None = None
    offset: int = 0
    per_document: int | None = None
    diversity: float = 0.0
    explain: bool = False
    rerank: Reranker | None = None
    n_reranked: int = N_RERANKED

    def __post_init__(self) -> None:
        least = {"k": 1, "offset": 0, "n_reranked": 1} | (
            {} if self.per_document is None else {"per_document": 1}
        )
        for name, minimum in least.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
                raise InputError(f"{name} is {value!r}; expected a whole number of at least {minimum}.")
        if self.mode not in get_args(Mode):
            raise InputError(f"mode is {self.mode!r}; expected {', '.join(get_args(Mode))}.")
        if not isinstance(self.diversity, int | float) or not 0 <= self.diversity <= 1:
            raise InputError(f"diversity is {self.diversity!r}; expected 0 to 1.")
        if self.diversity and self.mode == "lexical":
            raise InputError(
                "diversity compares vectors, which lexical search has none of; use another mode."
            )


def search(
    live: LiveVectors,
    words: LiveWords,
    encoder: Callable[[], Embedder | None],
    query: str | Sequence[str] | ArrayLike,
    options: Options,
) -> list[Any]:
    """The best passages for a text, texts, a vector or vectors; see `Index.search`. `encoder` gives the embedder."""
    if isinstance(query, str):
        return _reranked(live, words, encoder, [query], options)[0]
    if isinstance(query, Sequence) and all(isinstance(one, str) for one in query):
        return _reranked(live, words, encoder, cast(list[str], list(query)), options)
    if options.rerank:
        raise InputError("A vector cannot be re-ranked, since a language model reads texts; give a text.")
    hits = search_vectors(
        live, words, check_vectors(cast(ArrayLike, query), live.store.settings.dimension), options
    )
    return hits[0] if np.ndim(cast(ArrayLike, query)) == 1 else hits


def _reranked(
    live: LiveVectors,
    words: LiveWords,
    encoder: Callable[[], Embedder | None],
    texts: list[str],
    options: Options,
) -> list[Hits]:
    """The best passages for each text; the first of them in the order of a language model, if there is one."""
    embedder = None if options.mode == "lexical" else encoder()
    if options.rerank is None:
        return search_texts(live, words, embedder, texts, options)
    end = options.offset + options.k
    more = replace(options, k=max(end, options.n_reranked), offset=0)
    results = []
    for text, hits in zip(texts, search_texts(live, words, embedder, texts, more), strict=True):
        ordered = rerank_hits(options.rerank, text, hits, options.n_reranked)
        results.append(Hits(ordered[options.offset : end], exact=False))
    return results


def search_texts(
    live: LiveVectors, words: LiveWords, encoder: Embedder | None, texts: Sequence[str], options: Options
) -> list[Hits]:
    """The best passages for each text.

    Raises:
        InputError: for an empty text, one that is not Unicode, or a malformed filter.
    """
    store = live.store
    for text in texts:
        if not text.strip():
            raise InputError("The query is empty; expected text.")
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise InputError(f"The query {text!r} has an unpaired surrogate; expected Unicode text.")
    if options.mode == "lexical":
        with store.read() as tx:
            numbers = _allowed(tx, options)

            def rank_words(n: int) -> list[list[Ranked]]:  # the matches of one text at a time in memory
                return [rank_lexical(Matches.find(words, tx, text, numbers), n) for text in texts]

            ranked = _selected(rank_words, options, store, tx)
            return _hits(words, tx, ranked, texts if options.explain else None, exact=True)
    if encoder is None:
        raise InputError(f"{store.folder} was built from precomputed vectors; search texts in mode lexical.")
    queries = encoder.encode_query(list(texts))
    with live.current() as (tx, view):
        numbers = _allowed(tx, options)
        queries = view.corpus_map.apply(queries)

        def rank(n: int) -> list[list[Ranked]]:
            if options.mode == "dense":
                return rank_dense(view, queries, n, numbers)
            matches = map(partial(Matches.find, words, tx, allowed=numbers), texts)  # one at a time in memory
            return rank_hybrid(view, queries, matches, n, numbers, store.settings.fusion)

        exact = options.mode == "dense" and view.is_exact(options.offset + options.k, numbers)
        results = _selected(rank, options, store, tx, view)
        return _hits(words, tx, results, texts if options.explain else None, exact=exact)


def search_vectors(live: LiveVectors, words: LiveWords, queries: Vectors, options: Options) -> list[Hits]:
    """The nearest passages for each vector (Q, dimension), as the embedder returns them.

    Raises:
        InputError: for lexical search, or a malformed filter.
    """
    if options.mode == "lexical":
        raise InputError(
            "Lexical search needs a text, not a vector; give a text, or search the vector in mode dense."
        )
    with live.current() as (tx, view):
        numbers, mapped = _allowed(tx, options), view.corpus_map.apply(queries)
        results = _selected(lambda n: rank_dense(view, mapped, n, numbers), options, live.store, tx, view)
        exact = view.is_exact(options.offset + options.k, numbers)
        return _hits(words, tx, results, [None] * len(results) if options.explain else None, exact=exact)


def _allowed(tx: sqlite3.Connection, options: Options) -> Numbers | None:
    return None if options.filter is None else allowed(tx, options.filter)


def _selected(
    rank: Rank, options: Options, store: Store, tx: sqlite3.Connection, view: DenseView | None = None
) -> list[list[Ranked]]:
    """Of the ranked passages those that `options` asks for; more are ranked until there are enough, or all are."""
    end = options.offset + options.k
    n = wanted = max(4 * end, POOL) if options.diversity else end
    while True:
        ranked = rank(n)
        results = ranked
        if options.per_document is not None:
            results = [_few_per_document(one, options.per_document, store, tx) for one in ranked]
        if all(len(one) >= wanted or len(all_of) < n for one, all_of in zip(results, ranked, strict=True)):
            break
        n *= 4
    if options.diversity and view is not None:
        results = [_diverse(one[:wanted], end, options.diversity, view) for one in results]
    return [one[options.offset : end] for one in results]


def _few_per_document(ranked: list[Ranked], most: int, store: Store, tx: sqlite3.Connection) -> list[Ranked]:
    """The passages without those that are behind `most` better ones of their document."""
    owners = store.owners(tx, [one.number for one in ranked])
    count: dict[int, int] = {}
    kept = []
    for one in ranked:
        owner = owners[one.number]
        count[owner] = count.get(owner, 0) + 1
        if count[owner] <= most:
            kept.append(one)
    return kept


def _diverse(ranked: list[Ranked], n: int, diversity: float, view: DenseView) -> list[Ranked]:
    """The n passages that are relevant and unlike those before them: maximal marginal relevance (Carbonell 1998).

    A passage's worth is (1 - diversity) · its score, scaled to 0 to 1 among `ranked`, minus diversity · its greatest
    cosine with a passage that was chosen before.
    """
    if not ranked:
        return []
    vectors = view.rows(np.array([one.number for one in ranked], dtype=np.int64))  # (m, d)
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    scores = np.array([one.score for one in ranked], dtype=np.float64)  # (m,)
    scores = (scores - scores.min()) / ((scores.max() - scores.min()) or 1)
    chosen: list[int] = []
    alike = np.zeros(len(ranked))  # greatest cosine with a chosen passage
    while len(chosen) < min(n, len(ranked)):
        worth = (1 - diversity) * scores - diversity * alike
        worth[chosen] = -np.inf
        best = int(worth.argmax())
        cosines = vectors @ vectors[best]
        alike = cosines if not chosen else np.maximum(alike, cosines)
        chosen.append(best)
    return [ranked[i] for i in chosen]


def _hits(
    words: LiveWords,
    tx: sqlite3.Connection,
    results: list[list[Ranked]],
    explained: Sequence[str | None] | None,
    *,
    exact: bool,
) -> list[Hits]:
    """The hits of each query; `explained`: the queries whose hits' scores are explained, or None."""
    rows = words.store.passages(tx, sorted({ranked.number for result in results for ranked in result}))
    if explained is None:
        return [
            Hits((Hit.of(ranked, rows[ranked.number]) for ranked in result), exact=exact)
            for result in results
        ]
    return [
        Hits(
            (
                Hit.of(ranked, rows[ranked.number], explanation)
                for ranked, explanation in zip(result, explain(words, tx, text, result, rows), strict=True)
            ),
            exact=exact,
        )
        for text, result in zip(explained, results, strict=True)
    ]
