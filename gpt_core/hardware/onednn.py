"""Fast linear layers on a CPU by oneDNN, which is part of torch."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gpt_core.hardware.capability import capability

MIN_ROWS = 16  # with fewer rows the overhead of the call exceeds the gain


def fast_linear(device: torch.device, onednn: bool | None = None) -> AbstractContextManager[Any]:
    """Context in which nn.Linear in float32 without gradients uses oneDNN if that is faster.

    torch calls MKL for float32, which uses AVX-512 on Intel's processors only: 107 GFLOP/s per core against oneDNN's
    250 on an AMD EPYC with AVX-512 (`capability`). Both compute in full float32 but sum in different orders, as
    different batch sizes do. Other dtypes and devices are not affected.

    Args:
        device: of the layers.
        onednn: the choice recorded by an earlier process, for the same rounding; None: by `capability`.
    """
    return _OneDNN() if choose_onednn(device, onednn) else nullcontext()


def choose_onednn(device: torch.device, onednn: bool | None = None) -> bool:
    """Whether `fast_linear` uses oneDNN: the recorded choice, or else by `capability`; never if oneDNN is missing."""
    if device.type != "cpu" or not _has("_linear_pointwise"):
        return False
    return capability(device.type).onednn if onednn is None else onednn


class PackedLinear(nn.Module):
    """A linear layer for inference on a CPU, with its weight in oneDNN's blocked layout.

    With few rows a matmul is bound by reading the weight, which this layout allows at nearly the memory bandwidth: one
    row through SmolLM2-135M's matrices in bfloat16 takes 9 ms instead of 18 on an AMD EPYC, eight rows in float32
    23 ms instead of 54 (docs/log.md). With as many rows as a long prompt has, it is as fast as nn.Linear.

    Args:
        weight: (out, in), of a dtype and device for which `packs` is True.
        bias: (out,) or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        # torch.compile's CPU backend uses this operator and that of `_by_onednn` for linear layers.
        self.register_buffer("weight", torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None))
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.weight: Tensor
        self.bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        return _by_onednn(x, self.weight, self.bias)


@cache
def packs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `PackedLinear` is available and faster on this device in this dtype: on x86 processors with AVX."""
    if device.type != "cpu" or not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return False
    known = dtype == torch.float32 or (dtype == torch.bfloat16 and multiplies_bfloat16())
    return known and _has("_reorder_linear_weight", "_linear_pointwise")


@cache
def multiplies_bfloat16() -> bool:
    """Whether oneDNN supports bfloat16 on this processor; torch's fallback is many times slower."""
    return _has("_is_mkldnn_bf16_supported") and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _has(*operators: str) -> bool:
    """Whether torch has oneDNN with these operators, which are undocumented."""
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
    plain = type(weight) in (Tensor, torch.nn.Parameter)  # not a DTensor
    float32 = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    on_cpu = x.device.type == weight.device.type == "cpu"
    return (
        plain
        and float32
        and on_cpu
        and not torch.is_grad_enabled()
        and x.numel() >= MIN_ROWS * x.shape[-1] > 0
    )


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
