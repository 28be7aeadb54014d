"""Embeddings from a GPT: pooling, encoding, corpus maps."""

from embed.encoding.encoder import Encoder
from embed.network.config import EmbedderConfig, Fusion, Pooling
from embed.network.corpus_map import CorpusMap

__all__ = ["CorpusMap", "EmbedderConfig", "Encoder", "Fusion", "Pooling"]
