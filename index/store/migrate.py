"""What brings a store of an older format to this program's, so that it needs no new build."""

import sqlite3

from index.store.fields import rewrite_fields
from index.store.schema import FORMAT, PASSAGE_INDEX, vectors_table
from index.store.words import rewrite_words

OLDEST = 2  # format that can be brought to this one


def migrate(tx: sqlite3.Connection, version: int) -> None:
    """Bring a store of format `version`, at least `OLDEST`, to `FORMAT`, within a write transaction."""
    if version < 3:
        tx.execute("ALTER TABLE documents ADD COLUMN pages TEXT NOT NULL DEFAULT ''")
        tx.execute("ALTER TABLE passages ADD COLUMN headings TEXT NOT NULL DEFAULT '[]'")
        tx.execute("ALTER TABLE files ADD COLUMN state TEXT NOT NULL DEFAULT ''")
        tx.execute("ALTER TABLE files ADD COLUMN problem TEXT NOT NULL DEFAULT ''")
    if version < 4:
        _keep_texts_once(tx)
        tx.execute(vectors_table("new_vectors"))
    tx.execute(f"PRAGMA user_version = {FORMAT}")


def _keep_texts_once(tx: sqlite3.Connection) -> None:
    """Divide the documents' texts into pieces, make the index over fields, and the full text without its words."""
    tx.execute("DROP INDEX passages_of_document")
    tx.execute(PASSAGE_INDEX)
    for column in ("lead", "rest"):
        tx.execute(f"ALTER TABLE documents ADD COLUMN {column} TEXT NOT NULL DEFAULT ''")
    for document in tx.execute("SELECT number FROM documents").fetchall():
        (text,) = tx.execute("SELECT text FROM documents WHERE number = ?", document).fetchone()
        query = "SELECT number, start, stop FROM passages WHERE document = ? ORDER BY start"
        rows = tx.execute(query, document).fetchall()
        ends = [start for _, start, _ in rows[1:]] + [stop for _, _, stop in rows[-1:]]
        parts = [(text[start:end], number) for (number, start, _), end in zip(rows, ends, strict=True)]
        tx.executemany("UPDATE passages SET text = ? WHERE number = ?", parts)
        lead, rest = (text[: rows[0][1]], text[rows[-1][2] :]) if rows else (text, "")
        tx.execute("UPDATE documents SET lead = ?, rest = ? WHERE number = ?", (lead, rest, *document))
    tx.execute("ALTER TABLE documents DROP COLUMN text")
    rewrite_fields(tx)
    rewrite_words(tx)
