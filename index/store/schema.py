"""The store's tables, and the SQLite errors that the machine causes."""

import sqlite3

from embed.text.analysis import FTS5_TOKENIZER

FORMAT = 4  # version of the schema and of the output of `index_terms`


def vectors_table(name: str) -> str:
    """The statement that makes a table of vectors: of the present embedder, or of one that is to replace it."""
    return f"CREATE TABLE {name} (number INTEGER PRIMARY KEY REFERENCES passages (number), vector BLOB NOT NULL) STRICT"


# Errors caused by the machine, such as a full disk; all other SQLite errors are bugs of this program.
ENVIRONMENT_ERRORS = {
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_FULL),
    *(sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY),
}


# The full text, without the words themselves, which follow from the passages. Each passage's stop words, for queries
# that have no other words, are apart so that they do not count in BM25.
LEXICAL = {
    name: f"CREATE VIRTUAL TABLE {name} USING fts5 (terms, content = '', tokenize = '{FTS5_TOKENIZER}')"
    for name in ("lexical", "lexical_stop_words")
}
# The values of the documents' metadata, for filters; see `index.store.fields`.
FIELDS = (
    "CREATE TABLE field_names (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT",
    """CREATE TABLE fields (
    field INTEGER NOT NULL, kind INTEGER NOT NULL, value ANY NOT NULL, document INTEGER NOT NULL,
    PRIMARY KEY (field, kind, value, document)
) STRICT, WITHOUT ROWID""",
)
# A document's text is `lead`, the texts of its passages in order, and `rest`. The text that a passage's row has begins
# where the passage begins, and ends where the next one of the document begins; so passages may overlap.
PASSAGE_INDEX = "CREATE INDEX passages_of_document ON passages (document, start)"


SCHEMA = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value ANY NOT NULL) STRICT;
CREATE TABLE documents (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, title TEXT NOT NULL, metadata TEXT NOT NULL,
    hash TEXT NOT NULL, source TEXT NOT NULL, pages TEXT NOT NULL DEFAULT '', lead TEXT NOT NULL DEFAULT '',
    rest TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX documents_of_source ON documents (source);
CREATE TABLE files (
    source TEXT PRIMARY KEY, place TEXT NOT NULL, name TEXT NOT NULL, state TEXT NOT NULL DEFAULT '',
    problem TEXT NOT NULL DEFAULT ''
) STRICT, WITHOUT ROWID;
CREATE TABLE roots (path TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
CREATE TABLE passages (
    number INTEGER PRIMARY KEY, document INTEGER NOT NULL REFERENCES documents (number),
    start INTEGER NOT NULL, stop INTEGER NOT NULL, text TEXT NOT NULL, headings TEXT NOT NULL DEFAULT '[]'
) STRICT;
{PASSAGE_INDEX};
{vectors_table("vectors")};
{vectors_table("new_vectors")};
CREATE TABLE tombstones (sequence INTEGER PRIMARY KEY, passage INTEGER NOT NULL) STRICT;
{"".join(f"{statement};" for statement in (*FIELDS, *LEXICAL.values()))}
"""
