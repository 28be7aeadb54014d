"""Explanations of the hits of one query."""

import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from embed.text.analysis import Phrase, query_terms, stems
from index.lexical.bm25 import inverse_frequency
from index.lexical.live import LiveWords
from index.lexical.matches import MAX_TERMS, find_phrases
from index.search.explanation import Explanation, Share, Term
from index.search.rank import Ranked
from index.store.words import lexical_terms


def explain(
    live: LiveWords,
    tx: sqlite3.Connection,
    text: str | None,
    ranked: Sequence[Ranked],
    rows: Mapping[int, Mapping[str, Any]],
) -> list[Explanation]:
    """How the scores of ranked passages come about.

    Args:
        live: the postings.
        tx: the transaction of the search.
        text: the query; None for a vector.
        ranked: the passages.
        rows: at least their rows in the store, by id.
    """
    terms: dict[int, list[Term]] = {one.number: [] for one in ranked}
    if text is not None and any(one.lexical for one in ranked):
        _add_terms(live, tx, text, rows, terms)
    return [
        Explanation(*_shares(one), tuple(sorted(terms[one.number], key=lambda term: -term.share)))
        for one in ranked
    ]


def _shares(ranked: Ranked) -> tuple[Share | None, Share | None]:
    if ranked.shares:
        dense, lexical = ranked.shares
        return dense, lexical._replace(score=ranked.lexical or 0.0)  # BM25 also where it has no influence
    alone = Share(ranked.score, ranked.score)
    return (alone, None) if ranked.lexical is None else (None, alone)


def _add_terms(
    live: LiveWords,
    tx: sqlite3.Connection,
    text: str,
    rows: Mapping[int, Mapping[str, Any]],
    terms: dict[int, list[Term]],
) -> None:
    """Add the query's phrases to the terms of the passages that have them."""
    query = query_terms(text)
    table = "lexical_stop_words" if query.only_stop_words else "lexical"
    words = {n: lexical_terms(rows[n]["title"], rows[n]["text"])[table].split() for n in terms}
    phrases = Counter(query.phrases[:MAX_TERMS])
    known = {word for some in words.values() for word in some}
    stem = stems(known | {word for phrase in phrases for word in phrase.words})
    stemmed = {number: [stem[word] for word in some] for number, some in words.items()}
    n_passages = live.store.count(tx, "passages")
    for phrase, in_query in phrases.items():
        numbers, scores = find_phrases(live, tx, table, [phrase])
        places = {n: i for i, n in enumerate(numbers.tolist()) if n in terms}
        for number, place in places.items():
            name = " ".join(phrase.words) + ("*" if phrase.is_prefix else "")
            frequency = _frequency(phrase, [stem[word] for word in phrase.words], stemmed[number])
            idf, share = inverse_frequency(n_passages, len(numbers)), in_query * float(scores[place])
            terms[number].append(Term(name, frequency, in_query, idf, share))


def _frequency(phrase: Phrase, stems: Sequence[str], words: Sequence[str]) -> int:
    """How often the stems follow each other in the stemmed words of a passage."""
    if phrase.is_prefix:
        return sum(word.startswith(stems[0]) for word in words)
    return sum(list(words[i : i + len(stems)]) == list(stems) for i in range(len(words)))
