"""The network of an embedder: a GPT, pooling, optional dense layers, normalisation to unit length."""

from collections.abc import Sequence
from typing import Literal, cast, get_args

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from embed.network.config import Pooling
from embed.network.pooling import pool, token_weights
from gpt_core.common.errors import InputError
from gpt_core.model.gpt import GPT

Activation = Literal["identity", "tanh"]


class Dense(nn.Module):
    """A linear layer after the pooling, as sentence-transformers' module of that name.

    Args:
        n_in: length of the pooled vector.
        n_out: length of the output vector.
        bias: whether the layer has a bias.
        activation: the function applied to the output.
    """

    def __init__(self, n_in: int, n_out: int, bias: bool = True, activation: Activation = "identity") -> None:
        super().__init__()
        if activation not in get_args(Activation):
            raise InputError(
                f"activation is {activation!r}; expected one of {', '.join(get_args(Activation))}."
            )
        self.linear = nn.Linear(n_in, n_out, bias=bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(B, n_in) → (B, n_out)."""
        x = self.linear(x)
        return torch.tanh(x) if self.activation == "tanh" else x


class Network(nn.Module):
    """Token ids to unit vectors: a GPT, pooling of its hidden states, dense layers.

    Args:
        gpt: any GPT. Only the blocks up to `pooling.layer` are used for vectors.
        pooling: which states are pooled, and how.
        dense: layers applied after the pooling, in order; often none.

    Raises:
        InputError: if `pooling.layer` exceeds the GPT's layers, or the dense layers' sizes do not match.
    """

    def __init__(self, gpt: GPT, pooling: Pooling, dense: Sequence[Dense] = ()) -> None:
        super().__init__()
        if pooling.layer is not None and pooling.layer > gpt.config.n_layer:
            raise InputError(
                f"The embedder pools layer {pooling.layer}, but its model has {gpt.config.n_layer} layers; set "
                f"pooling.layer to at most {gpt.config.n_layer}."
            )
        self.gpt = gpt
        self.pooling = pooling
        self.dense = nn.ModuleList(dense)
        self.dimension = gpt.config.n_embd
        for layer in dense:
            if layer.linear.in_features != self.dimension:
                raise InputError(
                    f"A dense layer of the embedder has in_features {layer.linear.in_features}; expected "
                    f"{self.dimension}, the length of its input."
                )
            self.dimension = layer.linear.out_features

    @property
    def dense_layers(self) -> list[Dense]:
        """The dense layers after the pooling, in order."""
        return cast(list[Dense], list(self.dense))

    @property
    def blocks(self) -> nn.ModuleList:
        """The GPT's blocks, which FSDP2 shards and torch.compile compiles one by one."""
        return self.gpt.blocks

    @property
    def is_table(self) -> bool:
        """Whether a vector is a mean of token embeddings alone: no block, norm or position changes them."""
        pooling = self.pooling
        plain = pooling.layer == 0 and not pooling.final_norm and not pooling.unit_tokens
        return plain and self.gpt.wpe is None

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Vectors of texts.

        Args:
            ids: (B, T) int64, padded on the right; causal attention keeps padding out of the real tokens' states.
            mask: (B, T) bool, true at real tokens.

        Returns:
            (B, dimension) float32 of unit length (float64 in a float64 model). A text without tokens gives zeros
            unless a dense layer has a bias.
        """
        return self.vectors(self.pooled(ids, mask))

    def pooled(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(B, n_embd) float32 (float64 in a float64 model): pooled vectors before the dense layers, not normalised."""
        if self.is_table:
            return self._means_of_table(ids, mask)
        hidden = self.gpt(ids, logits=False, layer=self.pooling.layer).hidden
        if self.pooling.final_norm and self.pooling.layer is not None:
            hidden = self.gpt.norm(hidden)
        # Pooling sums over many tokens, which needs float32 even where the GPT runs under autocast.
        with torch.autocast(ids.device.type, enabled=False):
            return pool(hidden, ids, mask, self.pooling)

    def _means_of_table(self, ids: Tensor, mask: Tensor) -> Tensor:
        """`pooled` of a table, in a tenth of the time of looking up (B, T, n_embd): padding is not even read."""
        table = self.gpt.wte.weight
        weights = token_weights(ids, mask, self.pooling, table.dtype)  # (B, T)
        n_tokens = mask.sum(dim=1)  # (B,)
        starts = n_tokens.cumsum(0) - n_tokens  # (B,)
        return F.embedding_bag(ids[mask], table, starts, per_sample_weights=weights[mask], mode="sum")

    def vectors(self, pooled: Tensor) -> Tensor:
        """(B, dimension) unit vectors, from the output of `pooled`."""
        with torch.autocast(pooled.device.type, enabled=False):
            for layer in self.dense:
                pooled = layer(pooled)
            return F.normalize(pooled, dim=-1)
