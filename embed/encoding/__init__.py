"""Encoding of texts to vectors: the encoder, sentence-transformers models, the vector cache, re-ranking."""
