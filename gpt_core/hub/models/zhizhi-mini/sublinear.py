"""Modules for sentence-transformers: pooling in which n occurrences of a token together have the weight √n.

An exported embedder with sublinear pooling contains a copy of this file, which `SentenceTransformer(folder,
trust_remote_code=True)` imports; so it imports nothing of this project.
"""

from typing import Any

import torch
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from torch import Tensor
from torch.nn import functional as F


def sublinear_weights(tokens: Tensor, rows: Tensor) -> Tensor:
    """(N,) tokens and the number of each one's text → (N,) float32 weights that sum to 1 in each text."""
    _, same, counts = torch.unique(
        rows * (tokens.max() + 1) + tokens, return_inverse=True, return_counts=True
    )
    weights = counts[same].float() ** -0.5
    sums = torch.zeros(int(rows.max()) + 1, device=rows.device).index_add_(0, rows, weights)
    return weights / sums[rows]


class SublinearEmbedding(StaticEmbedding):
    """A table of token vectors with sublinear pooling."""

    def forward(self, features: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        """Pool the tokens `input_ids` of texts that begin at `offsets`."""
        tokens, offsets = features["input_ids"], features["offsets"]
        if not len(tokens):
            return super().forward(features, **kwargs)
        places = torch.arange(len(tokens), device=tokens.device)
        rows = torch.bucketize(places, offsets, right=True) - 1
        weights = sublinear_weights(tokens, rows).to(self.embedding.weight.dtype)
        features["sentence_embedding"] = F.embedding_bag(
            tokens, self.embedding.weight, offsets, per_sample_weights=weights, mode="sum"
        )
        return features

    @classmethod
    def load(cls, *args: Any, **kwargs: Any) -> "SublinearEmbedding":
        """Load as `StaticEmbedding`, whose `load` does not return a subclass."""
        plain = StaticEmbedding.load(*args, **kwargs)
        return cls(plain.tokenizer, embedding_weights=plain.embedding.weight.detach())


class SublinearPooling(Pooling):
    """Sublinear pooling of a transformer's last hidden states."""

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Pool `token_embeddings` (B, T, C) where `attention_mask` is 1."""
        states, mask = features["token_embeddings"], features["attention_mask"].bool()
        weights = torch.zeros(mask.shape, device=mask.device)
        if mask.any():
            weights[mask] = sublinear_weights(features["input_ids"][mask], mask.nonzero()[:, 0])
        features["sentence_embedding"] = torch.einsum("btc,bt->bc", states.float(), weights)
        return features
