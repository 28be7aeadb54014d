"""Checks of a store: that its tables agree with each other, and the repair of what follows from the documents."""

import json
import sqlite3
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from index.reading.document import Document
from index.store.schema import LEXICAL
from index.store.store import Store, lexical_terms

MOST_NAMED = 3  # ids in a message


class Problem(NamedTuple):
    """What is wrong with a store.

    Attributes:
        text: one sentence.
        documents: ids of the documents that have to be encoded again, or, if `is_content`, read again from their files.
        is_content: whether the text of the documents is not what was stored.
        is_file: whether the SQLite file itself is damaged, which nothing here can repair.
    """

    text: str
    documents: tuple[str, ...] = ()
    is_content: bool = False
    is_file: bool = False


def find_problems(store: Store) -> Iterator[Problem]:
    """Yield what is wrong with a store; nothing if all is well. Reads the whole store once."""
    try:
        with store.read() as tx:
            yield from _file(tx)
            yield from _vectors(store, tx)
            yield from _documents(tx)
            yield from _lexical(tx)
            yield from _sequence(store, tx)
    except (sqlite3.DatabaseError, OSError) as error:
        yield Problem(f"the file cannot be read to its end: {error}", is_file=True)


def _file(tx: sqlite3.Connection) -> Iterator[Problem]:
    """Whether SQLite finds its pages in order, and the rows that others refer to."""
    for (line,) in tx.execute("PRAGMA integrity_check(10)").fetchall():
        if line != "ok":
            yield Problem(f"SQLite's integrity check: {line}", is_file=True)
    if rows := tx.execute("PRAGMA foreign_key_check").fetchall():
        yield Problem(
            f"{len(rows)} rows belong to a document or passage that is not there, the first in {rows[0][0]}"
        )


def _vectors(store: Store, tx: sqlite3.Connection) -> Iterator[Problem]:
    """Whether each passage has a vector of the right length that consists of numbers."""
    size = np.dtype(store.settings.dtype).itemsize * store.settings.dimension
    bad = tx.execute(
        """SELECT DISTINCT d.id FROM passages AS p JOIN documents AS d ON d.number = p.document
           LEFT JOIN vectors AS v ON v.number = p.number WHERE v.number IS NULL OR length(v.vector) <> ?""",
        (size,),
    ).fetchall()
    if bad:
        yield Problem(
            f"{_named(bad)} have passages without a whole vector", tuple(doc_id for (doc_id,) in bad)
        )
        return  # the blocks below need whole vectors
    numbers = [
        n for some, vectors in store.vector_blocks(tx, 0) for n in some[~np.isfinite(vectors).all(axis=1)]
    ]
    if numbers:
        query = (
            "SELECT d.id FROM passages AS p JOIN documents AS d ON d.number = p.document WHERE p.number = ?"
        )
        found = list(dict.fromkeys(row for n in numbers for row in tx.execute(query, (int(n),))))
        yield Problem(
            f"{_named(found)} have vectors that are no numbers", tuple(doc_id for (doc_id,) in found)
        )


def _documents(tx: sqlite3.Connection) -> Iterator[Problem]:
    """Whether each document has the content of its hash, and each passage the text of its document."""
    changed, unreadable = [], []
    for doc_id, title, text, metadata, content, pages in tx.execute(
        "SELECT id, title, text, metadata, hash, pages FROM documents"
    ):
        if content and Document.content_hash(title, text, metadata) != content:  # "": `mend` has marked it
            changed.append((doc_id,))
        try:
            json.loads(metadata), json.loads(pages or "0")
        except ValueError:
            unreadable.append((doc_id,))
    if changed:
        ids = tuple(doc_id for (doc_id,) in changed)
        yield Problem(f"{_named(changed)} have another text than was stored", ids, is_content=True)
    if unreadable:
        ids = tuple(doc_id for (doc_id,) in unreadable)
        text = f"{_named(unreadable)} have metadata or pages that are not JSON"
        yield from (Problem(text, ids, is_content=True), Problem(text, ids))
    moved = tx.execute(
        """SELECT DISTINCT d.id FROM passages AS p JOIN documents AS d ON d.number = p.document
           WHERE substr(d.text, p.start + 1, p.stop - p.start) <> p.text"""
    ).fetchall()
    if moved:
        ids = tuple(doc_id for (doc_id,) in moved)
        yield Problem(f"{_named(moved)} have passages that are not at their place in the text", ids)


def _lexical(tx: sqlite3.Connection) -> Iterator[Problem]:
    """Whether the full text has the terms of each passage."""
    wrong = sum(
        tx.execute(f"SELECT count(*) FROM (SELECT {one} EXCEPT SELECT {other})").fetchone()[0]
        for table in LEXICAL
        for one, other in [
            ("number FROM passages", f"id FROM {table}_docsize"),
            (f"id FROM {table}_docsize", "number FROM passages"),
        ]
    )
    if not wrong:
        rows = tx.execute(
            """SELECT d.title, p.text, l.terms, s.terms FROM passages AS p JOIN documents AS d ON d.number = p.document
               JOIN lexical AS l ON l.rowid = p.number JOIN lexical_stop_words AS s ON s.rowid = p.number"""
        )
        for title, text, words, stop_words in rows:
            wrong += list(lexical_terms(title, text).values()) != [words, stop_words]
    if wrong:
        yield Problem(f"{wrong} passages are not in the full text as they are")


def _sequence(store: Store, tx: sqlite3.Connection) -> Iterator[Problem]:
    """Whether the counter of changes is at the last change or behind it."""
    last = _last_change(tx)
    if last > store.sequence(tx):
        yield Problem(f"the last change has the number {last}, the counter is at {store.sequence(tx)}")


def mend(store: Store, tx: sqlite3.Connection, bad: Iterable[str], changed: Iterable[str]) -> None:
    """Mend a store, so that `find_problems` finds nothing.

    Args:
        store: the store, locked for writing by the caller.
        tx: a write transaction.
        bad: ids of documents that are deleted; the caller writes them again.
        changed: ids of documents that get another hash, so that the next `upsert` of them replaces them.
    """
    store.raise_sequence(tx, _last_change(tx))
    orphans = """SELECT number FROM passages WHERE document NOT IN (SELECT number FROM documents)
        UNION SELECT number FROM vectors WHERE number NOT IN (SELECT number FROM passages)"""
    store.remove_passages(tx, tx.execute(orphans).fetchall())
    for table, statement in LEXICAL.items():
        tx.execute(f"DROP TABLE {table}")
        tx.execute(statement)
    for doc_id in changed:
        store.mark_changed(tx, doc_id)
    for doc_id in bad:
        store.remove(tx, doc_id)
    query = "SELECT p.number, d.title, p.text FROM passages AS p JOIN documents AS d ON d.number = p.document"
    for number, title, text in tx.execute(query):
        store.index_words(tx, number, title, text)


def _last_change(tx: sqlite3.Connection) -> int:
    """The number of the last addition or deletion that the tables have."""
    query = "SELECT max(number) FROM (SELECT number FROM passages UNION SELECT sequence FROM tombstones)"
    return tx.execute(query).fetchone()[0] or 0


def _named(rows: list[tuple[str]]) -> str:
    """The number of documents, and the first of them."""
    shown = ", ".join(doc_id for (doc_id,) in rows[:MOST_NAMED])
    return f"{len(rows)} documents ({shown}{', …' if len(rows) > MOST_NAMED else ''})"
