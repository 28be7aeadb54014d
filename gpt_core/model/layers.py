"""What blocks are made of beside attention: norms, the MLP, dropout.

References: dropout (Srivastava et al. 2014), RMSNorm (Zhang & Sennrich 2019), SwiGLU (Shazeer 2020).
"""

from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from gpt_core.model.config import GPTConfig


class Dropout(nn.Module):
    """torch.nn.Dropout, in a third of its time on a CPU.

    Args:
        p: share of the numbers that become zero in training; on a CPU to the nearest 1/256. The others grow by as much.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Any shape → the same."""
        return dropout(x, self.p) if self.training and self.p else x


def dropout(x: Tensor, p: float) -> Tensor:
    """`x` with a share `p` of it zeroed and the rest scaled by 1/(1 - p)."""
    if x.device.type != "cpu":
        return F.dropout(x, p)
    # torch's own draws a number of 24 bits for each element; one of 64 bits makes eight that are good enough.
    words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
    cut = round(256 * p)
    keep = words.view(torch.uint8)[: x.numel()].view(x.shape) >= cut
    return x * keep * (256 / (256 - cut))


class RMSNorm(nn.RMSNorm):
    """torch's, in the precision of its weights: autocast hands it queries and keys in 16 bits."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) → (…, C)."""
        return super().forward(x.type_as(self.weight))


def make_norm(config: GPTConfig, width: int) -> nn.Module:
    """RMSNorm or LayerNorm over the last `width` numbers."""
    kind = RMSNorm if config.norm == "rmsnorm" else nn.LayerNorm
    return kind(width, eps=config.norm_eps)


class MLP(nn.Module):
    """GPT-2's two layers with GELU (tanh form, or exact), or SwiGLU: down(silu(gate(x)) · up(x))."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.n_embd, config.n_inner, bias=config.mlp_bias)
        self.gelu_form: Literal["none", "tanh"] = "none" if config.mlp == "gelu_erf" else "tanh"
        self.gate: nn.Linear | None = None
        if config.mlp == "swiglu":
            self.gate = nn.Linear(config.n_embd, config.n_inner, bias=config.mlp_bias)
        self.down = nn.Linear(config.n_inner, config.n_embd, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) → (B, T, C)."""
        if self.gate is None:
            return self.down(F.gelu(self.up(x), approximate=self.gelu_form))
        return self.down(F.silu(self.gate(x)) * self.up(x))
