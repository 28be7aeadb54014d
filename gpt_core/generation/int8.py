"""Weight-only int8 quantisation for decoding, which is bound by reading the weights.

Each row of a matrix becomes integers from -127 to 127 and one scale; activations stay in 16 or 32 bits (as LLM.int8()
without outliers, Dettmers et al. 2022, and gpt-fast).
"""

from collections.abc import Callable

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from gpt_core.model.gpt import GPT

MIN_ROWS_TO_DEQUANTIZE = 32  # input rows from which dequantising the weights first is faster on a CPU


class Int8Linear(nn.Module):
    """A linear layer with an int8 weight (out, in) and one scale per row.

    Args:
        weight: (out, in) int8, from `quantize`.
        scale: (out,) in the dtype in which the layer computes.
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
        # torch's kernel may crash for widths that are not multiples of 16
        kernel = x.dtype == torch.bfloat16 and x.device.type == "cpu" and x.shape[-1] % 16 == 0
        if kernel and len(rows) < MIN_ROWS_TO_DEQUANTIZE:
            y = torch._weight_int8pack_mm(rows, self.weight, self.scale)  # reads int8, computes in bfloat16
        else:
            y = F.linear(rows, self.weight.to(x.dtype)) * self.scale
        y = y.view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


class Int8Embedding(nn.Module):
    """Token embeddings as int8 rows with one scale each; arguments as for `Int8Linear`."""

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
    """Quantise `weight` (out, in): int8 rows (out, in), and their scales (out,) in the dtype of `weight`."""
    scale = weight.float().abs().amax(dim=1).div(127).clamp(min=torch.finfo(torch.float32).tiny)
    scale = scale.to(weight.dtype).float()  # rounded first, so that the rows fit the stored scale
    return weight.float().div(scale[:, None]).round().clamp(-127, 127).to(torch.int8), scale.to(weight.dtype)


def to_int8(model: GPT) -> GPT:
    """Quantise linear layers, token embeddings and head of `model` in place; norms, biases and positions stay."""

    def quantized(layer: nn.Linear) -> Int8Linear:
        bias = None if layer.bias is None else layer.bias.detach()
        return Int8Linear(*quantize(layer.weight.detach()), bias)

    replace_linears(model, quantized)
    rows = quantize(model.wte.weight.detach())
    if isinstance(model.head, nn.Linear):
        head = quantize(model.head.weight.detach())
    else:
        head = rows
    model.add_module("wte", Int8Embedding(*rows))
    model.head = Int8Linear(*head)
    return model


def replace_linears(model: GPT, make: Callable[[nn.Linear], nn.Module]) -> None:
    """Replace every linear layer of the blocks by `make(layer)`."""
    for block in model.blocks:
        for module in list(block.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(module, name, make(child))
