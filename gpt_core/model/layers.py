"""The layers of a block other than attention: norms, MLP, dropout.

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
        p: probability that an element is zeroed in training; on a CPU rounded to 1/256 if that changes p and 1 - p by
            at most 2 %. The others are scaled up.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Any shape → the same shape."""
        return dropout(x, self.p) if self.training and self.p else x


def dropout(x: Tensor, p: float) -> Tensor:
    """`x` with a share `p` of its elements zeroed and the others scaled by 1/(1 - p); the shape is unchanged."""
    cut = round(256 * p)
    if x.device.type != "cpu" or abs(cut / 256 - p) > 0.02 * min(p, 1 - p):
        return F.dropout(x, p)
    # torch draws a 24-bit number per element; one 64-bit draw gives eight bytes, which are precise enough.
    words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)  # (⌈x.numel() / 8⌉,)
    keep = words.view(torch.uint8)[: x.numel()].view(x.shape) >= cut  # (x.numel(),) bytes → the shape of x
    return x * keep * (256 / (256 - cut))  # the shape of x


class RMSNorm(nn.RMSNorm):
    """torch's RMSNorm in the dtype of its weights: under autocast it receives 16-bit queries and keys."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, width) → (…, width)."""
        return super().forward(x.type_as(self.weight))


def make_norm(config: GPTConfig, width: int) -> nn.Module:
    """RMSNorm or LayerNorm over a last dimension of `width`."""
    kind = RMSNorm if config.norm == "rmsnorm" else nn.LayerNorm
    return kind(width, eps=config.norm_eps)


class MLP(nn.Module):
    """down(gelu(up(x))) as in GPT-2 (GELU in its tanh form, or exact), or SwiGLU: down(silu(gate(x)) · up(x))."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.n_embd, config.n_inner, bias=config.mlp_bias)  # C → n_inner
        self.gelu_form: Literal["none", "tanh"] = "none" if config.mlp == "gelu_erf" else "tanh"
        self.gate: nn.Linear | None = None
        if config.mlp == "swiglu":
            self.gate = nn.Linear(config.n_embd, config.n_inner, bias=config.mlp_bias)  # C → n_inner
        self.down = nn.Linear(config.n_inner, config.n_embd, bias=config.mlp_bias)  # n_inner → C

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) → (B, T, C)."""
        if self.gate is None:
            # (B, T, C) → (B, T, n_inner) → (B, T, C)
            return self.down(F.gelu(self.up(x), approximate=self.gelu_form))
        return self.down(F.silu(self.gate(x)) * self.up(x))  # (B, T, C) → (B, T, n_inner) → (B, T, C)
