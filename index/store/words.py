"""The full text of a store: the words of its passages, and BM25 scores by SQLite's FTS5.

FTS5 does not keep the words. To delete a passage's words it needs them once more, so they are found again in its text.
"""

import sqlite3
import unicodedata
import uuid
from collections.abc import Iterable
from itertools import chain
from typing import Any

import numpy as np
import regex
from numpy.typing import NDArray

from embed.data.beir import join_title
from embed.text.analysis import Phrase, index_terms
from index.store.connections import get_meta, set_meta
from index.store.schema import LEXICAL
from index.store.texts import passage_texts

# Other versions may divide a text into other words.
VERSIONS = f"Unicode {unicodedata.unidata_version}, regex {regex.__version__}"

PassageText = tuple[int, str, str]  # a passage's id, its document's title, its text


def lexical_terms(title: str, text: str) -> dict[str, str]:
    """What each table of the full text has for a passage."""
    terms = index_terms(join_title(title, text))
    return {"lexical": " ".join(terms.words), "lexical_stop_words": " ".join(terms.stop_words)}


def add_words(tx: sqlite3.Connection, passages: Iterable[PassageText]) -> None:
    """Write the words of passages."""
    _renew(tx)
    for number, title, text in passages:
        for table, terms in lexical_terms(title, text).items():
            tx.execute(f"INSERT INTO {table} (rowid, terms) VALUES (?, ?)", (number, terms))


def remove_words(tx: sqlite3.Connection, passages: Iterable[PassageText]) -> None:
    """Delete the words of passages, whose texts must be those of `add_words`."""
    _renew(tx)
    for number, title, text in passages:
        for table, terms in lexical_terms(title, text).items():
            delete = f"INSERT INTO {table} ({table}, rowid, terms) VALUES ('delete', ?, ?)"
            tx.execute(delete, (number, terms))


def rewrite_words(tx: sqlite3.Connection) -> None:
    """Write the full text anew, from all passages."""
    for table, statement in LEXICAL.items():
        tx.execute(f"DROP TABLE IF EXISTS {table}")
        tx.execute(statement)
    name_words(tx)
    add_words(tx, passage_texts(tx))


def name_words(tx: sqlite3.Connection) -> None:
    """Give a new full text its identity, and remember what divides it into words."""
    set_meta(tx, "words_by", VERSIONS)
    set_meta(tx, "words_id", uuid.uuid4().hex)


def words_id(tx: sqlite3.Connection) -> str:
    """The identity of the full text; another one after it was written anew."""
    return get_meta(tx, "words_id", "")


def phrase_expression(phrase: Phrase) -> str:
    """A valid FTS5 expression that matches a phrase."""
    return f'"{" ".join(phrase.words)}"' + (" *" if phrase.is_prefix else "")


def _renew(tx: sqlite3.Connection) -> None:
    """Write the full text anew if other versions of the libraries wrote it: their words could not be deleted."""
    if get_meta(tx, "words_by") != VERSIONS:
        rewrite_words(tx)


def lexical_scores(
    tx: sqlite3.Connection, table: str, expression: str, after: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Passages that match an FTS5 expression: ids (n,), sorted, and BM25 scores (n,), higher is better.

    Args:
        tx: a transaction.
        table: "lexical" or "lexical_stop_words".
        expression: the expression.
        after: only passages with higher ids.
    """
    query = f"SELECT rowid, -bm25({table}) FROM {table} WHERE {table} MATCH ? AND rowid > ? ORDER BY rowid"
    rows = np.fromiter(chain.from_iterable(tx.execute(query, (expression, after))), dtype=np.float64).reshape(
        -1, 2
    )
    return rows[:, 0].astype(np.int64), rows[:, 1]


def n_passages_with(tx: sqlite3.Connection, terms: Iterable[str]) -> dict[str, int]:
    """For each stemmed term or bigram of `terms`, the number of passages that have it."""
    tx.execute("CREATE VIRTUAL TABLE IF NOT EXISTS temp.terms USING fts5vocab('main', 'lexical', 'row')")
    query = "SELECT doc FROM temp.terms WHERE term = ?"
    found: dict[str, Any] = {term: tx.execute(query, (term,)).fetchone() for term in terms}
    return {term: row[0] if row else 0 for term, row in found.items()}
