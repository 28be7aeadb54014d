"""Retrieval metrics for lexical, dense and hybrid search, and tuning on development sets."""
