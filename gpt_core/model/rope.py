"""Rotary positions (Su et al. 2021)."""

import torch
import torch.nn as nn
from torch import Tensor

from gpt_core.model.config import GPTConfig
from gpt_core.model.rope_scaling import frequencies


class Rope(nn.Module):
    """Rotary positions: each pair (x_i, x_{i + head_dim/2}) turns by position · theta^(-2i/head_dim), or as scaled."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        turns, attention_factor = frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        angles = torch.outer(torch.arange(config.block_size).float(), turns)
        # (block_size, head_dim) each; the sine of the left half carries the minus of its turn
        sin = angles.sin()
        self.register_buffer("cos", angles.cos().repeat(1, 2) * attention_factor, persistent=False)
        self.register_buffer("sin", torch.cat((-sin, sin), dim=1) * attention_factor, persistent=False)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine for `positions` (B, T) or (T,), shaped to broadcast over heads: (…, 1, T, head_dim)."""
        return self.cos[positions].unsqueeze(-3), self.sin[positions].unsqueeze(-3)  # type: ignore[index]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs of x (B, n, T, head_dim) by the angles of `Rope`."""
    left, right = x.chunk(2, dim=-1)
    return (x * cos).addcmul_(torch.cat((right, left), dim=-1), sin).type_as(x)
