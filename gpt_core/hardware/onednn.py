"""Matrix products on a CPU in the forms that it is fast at, by oneDNN, which torch brings."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gpt_core.hardware.device import GAIN, wall_seconds

FEW = 16  # rows below which the call costs more than it gains
SIZE = 512  # of the square matrices that the two are measured on: milliseconds


def quick_products(device: torch.device, onednn: bool | None = None) -> AbstractContextManager[Any]:
    """A context in which nn.Linear in float32 without gradients computes by oneDNN where that is faster.

    torch hands float32 products to MKL, which keeps to its slower instructions on processors that are not Intel's:
    107 GFLOP/s a core against oneDNN's 250 on an AMD EPYC with AVX-512. Which is faster is measured once in a process.
    Both compute in full float32; sums differ in their order, as between batch sizes. Other products, and all of them
    on other devices, are left alone.

    Args:
        device: where the products are.
        onednn: what an earlier process chose, to round as it did; None measures.
    """
    return _OneDNN() if choose_onednn(device, onednn) else nullcontext()


def choose_onednn(device: torch.device, onednn: bool | None = None) -> bool:
    """Whether `quick_products` uses oneDNN: as it was, where it is there, else as measured."""
    if device.type != "cpu" or not _has("_linear_pointwise"):
        return False
    return _onednn_is_faster(torch.get_num_threads()) if onednn is None else onednn


class PackedLinear(nn.Module):
    """A linear layer on a CPU for generating only: its weight lies in the order in which oneDNN reads it.

    A product of few rows takes as long as reading the weight, and from this order a core reads nearly as fast as memory
    gives: one row by SmolLM2-135M's matrices in bfloat16 takes 9 ms instead of 18 on an AMD EPYC, eight rows in float32
    23 instead of 54 (docs/log.md). As many rows as a long prompt has take no longer than elsewhere.

    Args:
        weight: (out, in), of a dtype and device that `packs` names.
        bias: (out,) or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        # This and what `_by_onednn` calls are what torch.compile makes of a linear layer.
        self.register_buffer("weight", torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None))
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.weight: Tensor
        self.bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        return _by_onednn(x, self.weight, self.bias)


@cache
def packs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `PackedLinear` can be had there, and is the fast form: on processors of the x86 kind with AVX."""
    if device.type != "cpu" or not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return False
    known = dtype == torch.float32 or (dtype == torch.bfloat16 and multiplies_bfloat16())
    return known and _has("_reorder_linear_weight", "_linear_pointwise")


@cache
def multiplies_bfloat16() -> bool:
    """Whether oneDNN multiplies in bfloat16 on this processor; torch's own loops are many times slower."""
    return _has("_is_mkldnn_bf16_supported") and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _has(*operators: str) -> bool:
    """Whether torch has oneDNN with these operators, which have no names in its documentation."""
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in operators)


class _OneDNN(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.linear and not kwargs and _suits(*args[:2]):
            return _by_onednn(*args)
        return func(*args, **(kwargs or {}))


def _suits(x: Tensor, weight: Tensor) -> bool:
    plain = type(weight) in (Tensor, torch.nn.Parameter)  # not a sharded one
    float32 = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    on_cpu = x.device.type == weight.device.type == "cpu"
    return plain and float32 and on_cpu and not torch.is_grad_enabled() and x.numel() >= FEW * x.shape[-1] > 0


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@cache
def _onednn_is_faster(n_threads: int) -> bool:
    """Whether it is so, by a margin that noise does not reach, with this many threads."""
    x, weight = torch.ones(SIZE, SIZE), torch.ones(SIZE, SIZE)
    plain, other = list[float](), list[float]()
    with torch.inference_mode():
        for _ in range(6):  # the first calls set things up
            plain.append(wall_seconds(lambda: F.linear(x, weight), x.device))
            other.append(wall_seconds(lambda: _by_onednn(x, weight), x.device))
    return min(plain) > GAIN * min(other)
