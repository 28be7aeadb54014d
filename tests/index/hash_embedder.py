"""An embedder that costs nothing: a text's vector is a random one, of which the text is the seed."""

import hashlib

import numpy as np

from embed.data.vectors import Vectors, unit_length
from embed.encoding.embedder import Embedder
from embed.network.config import EmbedderConfig
from gpt_core.tokenizer.tokenizer import Tokenizer

D = 16


class HashEmbedder(Embedder):
    """Equal texts have equal vectors, other texts have others; embedders of different seeds agree on none."""

    def __init__(self, seed: int = 0) -> None:
        self.name, self.folder, self.seed = f"hash-{seed}", None, seed
        self.config, self.max_tokens, self.n_truncated = EmbedderConfig(), 512, 0
        self.tokenizer = Tokenizer.from_pretrained("gpt2")

    @property
    def dimension(self) -> int:
        return D

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.name.encode()).hexdigest()

    def encode(self, texts, prompt_name=None, prompt=None, *, truncate_dim=None) -> Vectors:
        return unit_length(
            np.array([self._vector(text) for text in self._prompted(texts, prompt_name)]).reshape(-1, D)
        )

    def _vector(self, text: str) -> Vectors:
        digest = hashlib.sha256(f"{self.seed} {text}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8])).normal(size=D).astype(np.float32)
