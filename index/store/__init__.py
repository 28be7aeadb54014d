"""The SQLite store of documents, passages, metadata, full text and vectors."""
