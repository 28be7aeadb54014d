"""File formats of embedders: embedder.json, sentence-transformers' modules, export."""
