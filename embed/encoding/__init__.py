"""Texts to vectors: the encoder, peer models, cached vectors, re-ranking."""
