"""Rotary positions (Su et al. 2021)."""

import torch
import torch.nn as nn
from torch import Tensor

from gpt_core.model.config import GPTConfig
from gpt_core.model.rope_scaling import frequencies


class Rope(nn.Module):
    """Rotary positions: rotate each pair (x_i, x_{i + head_dim/2}) by position · theta^(-2i/head_dim), or as scaled.

    Attributes:
        cos: (block_size, head_dim) float32, the cosine of each position's angles, repeated for both halves of a head.
        sin: (block_size, head_dim) float32, the sine likewise, negated in the left half.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        per_position, attention_factor = frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        # (block_size,) ⊗ (head_dim / 2,) → (block_size, head_dim / 2)
        angles = torch.outer(torch.arange(config.block_size).float(), per_position)
        sin = angles.sin()  # (block_size, head_dim / 2)
        # (block_size, head_dim) each
        self.register_buffer("cos", angles.cos().repeat(1, 2) * attention_factor, persistent=False)
        self.register_buffer("sin", torch.cat((-sin, sin), dim=1) * attention_factor, persistent=False)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of positions (B, T) or (T,), with a dimension of size 1 for the heads."""
        # (B, 1, T, head_dim) or (1, T, head_dim) each
        return self.cos[positions].unsqueeze(-3), self.sin[positions].unsqueeze(-3)  # type: ignore[index]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs of each head by the angles of its position.

    Args:
        x: (B, n, T, head_dim), queries or keys of n heads.
        cos: (B, 1, T, head_dim) or (1, T, head_dim), from `Rope`.
        sin: like cos.

    Returns:
        (B, n, T, head_dim), in the dtype of x.
    """
    left, right = x.chunk(2, dim=-1)  # (B, n, T, head_dim / 2) each
    return (x * cos).addcmul_(torch.cat((right, left), dim=-1), sin).type_as(x)  # (B, n, T, head_dim)
