"""Embeddings from a GPT: pooling, encoding, corpus maps."""

from embed.config import EmbedderConfig, Fusion, Pooling
from embed.encoder import Encoder
from embed.maps import CorpusMap

__all__ = ["CorpusMap", "EmbedderConfig", "Encoder", "Fusion", "Pooling"]
