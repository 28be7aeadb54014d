"""The SQLite store: passages, metadata, full text and vectors, written in one transaction."""
