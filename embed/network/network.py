"""The network behind an embedder: a GPT, pooling, perhaps a dense layer; unit vectors come out."""

from collections.abc import Sequence
from typing import Literal, cast, get_args

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from embed.network.config import Pooling
from embed.network.pooling import pool
from gpt_core.common.errors import InputError
from gpt_core.model.gpt import GPT

Activation = Literal["identity", "tanh"]


class Dense(nn.Module):
    """A linear layer after the pooling, as sentence-transformers' module of that name.

    Args:
        n_in: length of the pooled vector.
        n_out: length of what comes out.
        bias: whether a bias is added.
        activation: what follows.
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
    """Token ids to unit vectors: a GPT, pooling of its states, dense layers.

    Args:
        gpt: any GPT. Only the blocks up to `pooling.layer` are used for vectors.
        pooling: which states become the vector, and how.
        dense: what follows, in order; often nothing.

    Raises:
        InputError: for a layer that the GPT does not have, or dense layers that do not fit.
    """

    def __init__(self, gpt: GPT, pooling: Pooling, dense: Sequence[Dense] = ()) -> None:
        super().__init__()
        if pooling.layer is not None and pooling.layer > gpt.config.n_layer:
            raise InputError(
                f"The embedder pools layer {pooling.layer}; its model has {gpt.config.n_layer} layers."
            )
        self.gpt = gpt
        self.pooling = pooling
        self.dense = nn.ModuleList(dense)
        self.dimension = gpt.config.n_embd
        for layer in dense:
            if layer.linear.in_features != self.dimension:
                raise InputError(
                    f"A dense layer of the embedder takes {layer.linear.in_features} numbers; it gets {self.dimension}."
                )
            self.dimension = layer.linear.out_features

    @property
    def dense_layers(self) -> list[Dense]:
        """What follows the pooling, in order."""
        return cast(list[Dense], list(self.dense))

    @property
    def blocks(self) -> nn.ModuleList:
        """The GPT's blocks: what FSDP2 shards and torch.compile compiles, one by one."""
        return self.gpt.blocks

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Vectors of texts.

        Args:
            ids: (B, T) int64, padded on the right, where no real token looks.
            mask: (B, T) bool, true at real tokens.

        Returns:
            (B, dimension) float32 of unit length (float64 in a float64 model). A row without tokens gives zeros
            where no dense layer has a bias.
        """
        return self.vectors(self.pooled(ids, mask))

    def pooled(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(B, n_embd) float32 (float64 in a float64 model): the vectors before the dense layers, of any length."""
        hidden = self.gpt(ids, logits=False, layer=self.pooling.layer).hidden
        if self.pooling.final_norm and self.pooling.layer is not None:
            hidden = self.gpt.norm(hidden)
        # A vector sums over many tokens: never in 16 bits, whatever autocast does inside the GPT.
        with torch.autocast(ids.device.type, enabled=False):
            return pool(hidden, mask, self.pooling)

    def vectors(self, pooled: Tensor) -> Tensor:
        """What `forward` returns, from what `pooled` does."""
        with torch.autocast(pooled.device.type, enabled=False):
            for layer in self.dense:
                pooled = layer(pooled)
            return F.normalize(pooled, dim=-1)
