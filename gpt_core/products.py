"""Float32 matrix products on a CPU by the faster of the two libraries that torch brings."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gpt_core.device import GAIN, wall_seconds

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
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if onednn is None:
        return _onednn_is_faster(torch.get_num_threads())
    return onednn and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class OneDNNLinear(nn.Linear):
    """A linear layer that computes by oneDNN, in float32 and without gradients, for few rows as well as for many."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        return _by_onednn(x, self.weight, self.bias)


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
    # What torch.compile makes of a linear layer; it has no name in torch's documentation.
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@cache
def _onednn_is_faster(n_threads: int) -> bool:
    """Whether it is so, by a margin that noise does not reach, with this many threads."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    x, weight = torch.ones(SIZE, SIZE), torch.ones(SIZE, SIZE)
    plain, other = list[float](), list[float]()
    with torch.inference_mode():
        for _ in range(6):  # the first calls set things up
            plain.append(wall_seconds(lambda: F.linear(x, weight), x.device))
            other.append(wall_seconds(lambda: _by_onednn(x, weight), x.device))
    return min(plain) > GAIN * min(other)
