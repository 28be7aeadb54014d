"""Turns a store into one of an older format, with the same documents."""

import sqlite3
from contextlib import closing
from pathlib import Path

from index.reading.document import Document
from index.store.schema import LEXICAL
from index.store.store import FILE, Store
from index.store.texts import passage_texts
from index.store.words import lexical_terms

COLUMNS_SINCE_3 = (
    ("documents", "pages"),
    ("passages", "headings"),
    ("files", "state"),
    ("files", "problem"),
)


def to_format(folder: Path, version: int) -> None:
    """Make the store in `folder` one of format 3 or 2."""
    with closing(Store(folder)) as store, store.read() as tx:
        documents: list[Document] = [store.document(tx, doc_id) for doc_id in store.document_ids(tx)]
        passages = list(passage_texts(tx))
    with sqlite3.connect(folder / FILE) as connection:
        connection.execute("ALTER TABLE documents ADD COLUMN text TEXT NOT NULL DEFAULT ''")
        texts = [(document.text, document.id) for document in documents]
        connection.executemany("UPDATE documents SET text = ? WHERE id = ?", texts)
        connection.executemany(
            "UPDATE passages SET text = ? WHERE number = ?", [(t, n) for n, _, t in passages]
        )
        for table in ("fields", "field_names", "new_vectors", *LEXICAL):
            connection.execute(f"DROP TABLE {table}")
        for table, statement in LEXICAL.items():
            connection.execute(statement.replace("content = '', ", ""))
            words = [(number, lexical_terms(title, text)[table]) for number, title, text in passages]
            connection.executemany(f"INSERT INTO {table} (rowid, terms) VALUES (?, ?)", words)
        for column in ("lead", "rest"):
            connection.execute(f"ALTER TABLE documents DROP COLUMN {column}")
        connection.execute("DROP INDEX passages_of_document")
        connection.execute("CREATE INDEX passages_of_document ON passages (document)")
        connection.execute("DELETE FROM meta WHERE key = 'words_by'")
        if version < 3:
            for table, column in COLUMNS_SINCE_3:
                connection.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
