"""Embedders on disk: our settings, sentence-transformers' modules, export."""
