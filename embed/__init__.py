"""Embeddings from a GPT: pooling, encoding, corpus maps."""
