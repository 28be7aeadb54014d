"""Embeddings from a GPT: pooling, encoding, corpus maps."""

from embed.encoding.embedder import Embedder
from embed.encoding.encoder import Encoder
from embed.encoding.load import load_embedder
from embed.network.config import EmbedderConfig, Fusion, Pooling
from embed.network.corpus_map import CorpusMap

__all__ = ["CorpusMap", "Embedder", "EmbedderConfig", "Encoder", "Fusion", "Pooling", "load_embedder"]
