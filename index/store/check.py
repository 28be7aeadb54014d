"""Checks of a store: that its tables agree with each other, and the repair of what follows from the documents."""

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import islice
from typing import NamedTuple

import numpy as np

from index.reading.document import Document
from index.store.fields import field_rows, rewrite_fields, stored_rows
from index.store.schema import LEXICAL
from index.store.store import Store
from index.store.texts import DOCUMENT_TEXT, passage_texts
from index.store.words import lexical_terms, rewrite_words

MOST_NAMED = 3  # ids in a message
PASSAGES_PER_BLOCK = 1000  # whose words are compared at once


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
    """Whether each document has the content of its hash, its passages in their places, and its fields."""
    changed, unreadable, moved, fields = [], [], [], 0
    query = (
        f"SELECT number, id, title, metadata, hash, pages, length(lead), {DOCUMENT_TEXT} FROM documents AS d"
    )
    for number, doc_id, title, metadata, content, pages, lead, text in tx.execute(query):
        if content and Document.content_hash(title, text, metadata) != content:  # "": `mend` has marked it
            changed.append((doc_id,))
        try:
            json.loads(pages or "0")
            fields += sum(hash((number, row)) for row in field_rows(json.loads(metadata)))
        except ValueError:
            unreadable.append((doc_id,))
        if not _is_in_place(tx, number, lead, len(text)):
            moved.append((doc_id,))
    if changed:
        ids = tuple(doc_id for (doc_id,) in changed)
        yield Problem(f"{_named(changed)} have another text than was stored", ids, is_content=True)
    if unreadable:
        ids = tuple(doc_id for (doc_id,) in unreadable)
        said = f"{_named(unreadable)} have metadata or pages that are not JSON"
        yield from (Problem(said, ids, is_content=True), Problem(said, ids))
    if moved:
        ids = tuple(doc_id for (doc_id,) in moved)
        yield Problem(f"{_named(moved)} have passages that are not at their place in the text", ids)
    if not unreadable and fields != sum(map(hash, stored_rows(tx))):
        yield Problem("the index over fields is not that of the documents' metadata")


def _is_in_place(tx: sqlite3.Connection, document: int, lead: int, length: int) -> bool:
    """Whether the texts of a document's passages follow each other in the order of their places."""
    query = "SELECT start, stop, text FROM passages WHERE document = ? ORDER BY start"
    rows = tx.execute(query, (document,)).fetchall()
    begins = [start for start, _, _ in rows]
    ends = [start + len(text) for start, _, text in rows]
    is_whole = all(start <= stop <= length for start, stop, _ in rows)
    return not rows or (is_whole and begins == [lead, *ends[:-1]] and ends[-1] == rows[-1][1])


def _lexical(tx: sqlite3.Connection) -> Iterator[Problem]:
    """Whether the full text has the words of each passage, each at its place."""
    wrong = set()
    for table in LEXICAL:
        there = {number for (number,) in tx.execute(f"SELECT id FROM {table}_docsize")}
        wrong |= there.symmetric_difference(number for (number,) in tx.execute("SELECT number FROM passages"))
        # Of the hashes of a passage's words: those expected minus those that are there.
        sums: dict[int, int] = {}
        _add_words(tx, table, -1, sums)
        passages = passage_texts(tx)
        while block := list(islice(passages, PASSAGES_PER_BLOCK)):
            with closing(sqlite3.connect(":memory:")) as expected:  # with FTS5's own stemmer
                expected.execute(LEXICAL[table])
                words = ((number, lexical_terms(title, text)[table]) for number, title, text in block)
                expected.executemany(f"INSERT INTO {table} (rowid, terms) VALUES (?, ?)", words)
                _add_words(expected, table, 1, sums)
        wrong |= {number for number, total in sums.items() if total}
    if wrong:
        yield Problem(f"{len(wrong)} passages are not in the full text as they are")


def _add_words(tx: sqlite3.Connection, table: str, sign: int, sums: dict[int, int]) -> None:
    """Add the hashes of all words of a table of the full text, with their places, to the `sums` of their passages."""
    tx.execute("DROP TABLE IF EXISTS temp.words_of_passages")
    tx.execute(f"CREATE VIRTUAL TABLE temp.words_of_passages USING fts5vocab('main', '{table}', 'instance')")
    for term, number, place in tx.execute("SELECT term, doc, offset FROM temp.words_of_passages"):
        sums[number] = sums.get(number, 0) + sign * hash((term, place))


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
    for doc_id in changed:
        store.mark_changed(tx, doc_id)
    for doc_id in bad:
        for (number,) in tx.execute("SELECT number FROM documents WHERE id = ?", (doc_id,)).fetchall():
            store.remove_rows(tx, number)
    rewrite_fields(tx)
    rewrite_words(tx)


def _last_change(tx: sqlite3.Connection) -> int:
    """The number of the last addition or deletion that the tables have."""
    query = "SELECT max(number) FROM (SELECT number FROM passages UNION SELECT sequence FROM tombstones)"
    return tx.execute(query).fetchone()[0] or 0


def _named(rows: list[tuple[str]]) -> str:
    """The number of documents, and the first of them."""
    shown = ", ".join(doc_id for (doc_id,) in rows[:MOST_NAMED])
    return f"{len(rows)} documents ({shown}{', …' if len(rows) > MOST_NAMED else ''})"
