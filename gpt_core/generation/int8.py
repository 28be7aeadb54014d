"""Weights in 8 bits, for decoding, whose speed is that of reading the weights.

Each row of a matrix becomes whole numbers from -127 to 127 and one scale; what flows between the layers stays in 16 or
32 bits (weight-only quantisation, as LLM.int8() without outliers, Dettmers et al. 2022, and gpt-fast).
"""

from collections.abc import Callable

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from gpt_core.model.gpt import GPT

MANY = 32  # rows of input from which on widening the weights first is faster on a CPU


class Int8Linear(nn.Module):
    """A linear layer whose weight (out, in) is int8 with a scale for each row.

    Args:
        weight: (out, in) int8, from `quantize`.
        scale: (out,) of the dtype that the layer computes in.
        bias: (out,) or None.
    """

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)
        self.weight: Tensor
        self.scale: Tensor
        self.bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        rows = x.reshape(-1, x.shape[-1])
        # of other widths torch's kernel may crash
        kernel = x.dtype == torch.bfloat16 and x.device.type == "cpu" and x.shape[-1] % 16 == 0
        if kernel and len(rows) < MANY:
            y = torch._weight_int8pack_mm(rows, self.weight, self.scale)  # reads 8 bits, computes in more
        else:
            y = F.linear(rows, self.weight.to(x.dtype)) * self.scale
        y = y.view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


class Int8Embedding(nn.Module):
    """Token embeddings out of int8 rows with a scale each; arguments as for `Int8Linear`."""

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.weight: Tensor
        self.scale: Tensor

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) int64 → (B, T, C)."""
        return self.weight[ids].to(self.scale.dtype) * self.scale[ids, None]


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest int8 rows (out, in) to `weight`, and their scales (out,) in its dtype."""
    scale = weight.float().abs().amax(dim=1).div(127).clamp(min=torch.finfo(torch.float32).tiny)
    scale = scale.to(weight.dtype).float()  # rounded first, so that the rows fit the scale that is kept
    return weight.float().div(scale[:, None]).round().clamp(-127, 127).to(torch.int8), scale.to(weight.dtype)


def to_int8(model: GPT) -> GPT:
    """Give `model`, in place, 8-bit linear layers, token embeddings and head; norms, biases and positions stay."""

    def narrow(layer: nn.Linear) -> Int8Linear:
        bias = None if layer.bias is None else layer.bias.detach()
        return Int8Linear(*quantize(layer.weight.detach()), bias)

    replace_linears(model, narrow)
    rows = quantize(model.wte.weight.detach())
    if isinstance(model.head, nn.Linear):
        head = quantize(model.head.weight.detach())
    else:
        head = rows
    model.add_module("wte", Int8Embedding(*rows))
    model.head = Int8Linear(*head)
    return model


def replace_linears(model: GPT, make: Callable[[nn.Linear], nn.Module]) -> None:
    """Replace every linear layer of the blocks by what `make` makes of it."""
    for block in model.blocks:
        for module in list(block.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(module, name, make(child))
