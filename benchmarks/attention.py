"""Benchmark the kernels of causal `scaled_dot_product_attention`: time and memory, forward and backward."""

import re
import resource
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.own_process import in_own_process
from gpt_core.common.errors import InputError
from gpt_core.evaluation.report import print_report
from gpt_core.hardware.device import DeviceName, peak_memory, pick_device, wall_seconds

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
COLUMNS = ("kernel", "dtype", "T", "head_dim", "forward_ms", "forward_backward_ms", "memory_mib", "note")
REPEATS = 5


def bench_attention(
    *,
    lengths: tuple[int, ...] = (256, 1024, 4096),
    head_dims: tuple[int, ...] = (64, 128),
    batch_size: int = 1,
    n_head: int = 12,
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16",
    device: DeviceName = "auto",
) -> None:
    """Measure time and memory of causal attention with PyTorch's flash, memory-efficient and math kernels.

    forward_ms and forward_backward_ms are the minimum of five runs; memory_mib is the peak memory of a forward and
    backward without the inputs. Kernels that do not support this device, dtype or length are listed with a note. Each
    kernel and length is measured in a separate process. Prints a table and ends with a line of JSON.

    Args:
        lengths: sequence lengths in tokens.
        head_dims: dimensions of a head.
        batch_size: sequences.
        n_head: attention heads.
        dtype: of queries, keys and values.
        device: auto: cuda, else mps, else cpu.
    """
    place = pick_device(device)
    given = {"lengths": lengths, "head_dims": head_dims, "batch_size": (batch_size,), "n_head": (n_head,)}
    for name, values in given.items():
        if not values or min(values) < 1:
            raise InputError(f"{name} is {values}; expected one or more numbers, each at least 1.")
    rows = []
    for length in lengths:
        for head_dim in head_dims:
            for kernel in KERNELS:
                shape = (batch_size, n_head, length, head_dim)
                figures = in_own_process(measure, kernel, shape, dtype, place.type)
                rows.append({"kernel": kernel, "dtype": dtype, "T": length, "head_dim": head_dim} | figures)
    print_report(rows, COLUMNS, _ratios(rows))


def measure(kernel: str, shape: tuple[int, int, int, int], dtype: str, device: str) -> dict[str, Any]:
    """Measure one kernel in this process; returns its figures, or {"note": reason} if it does not run.

    Args:
        kernel: a key of `KERNELS`.
        shape: (B, n_head, T, head_dim) of queries, keys and values.
        dtype: "float32", "bfloat16" or "float16".
        device: "cpu", "cuda" or "mps".
    """
    place = torch.device(device)
    q, k, v, upstream = (torch.randn(shape, dtype=getattr(torch, dtype), device=place) for _ in range(4))
    inputs = [x.requires_grad_() for x in (q, k, v)]

    def forward() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def forward_backward() -> None:
        torch.autograd.grad(forward(), inputs, upstream)

    # For an unsupported kernel, torch warns with each reason and then raises.
    with sdpa_kernel(KERNELS[kernel]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = _memory(place, peak=False)
        try:
            forward_backward()
        except torch.OutOfMemoryError:
            return {"note": "out of memory"}
        except RuntimeError as error:
            if not re.search("No (available kernel|viable backend)", str(error)):
                raise
            return {"note": f"not supported on this device for {dtype}"}
        memory = (
            max(0, _memory(place, peak=True) - before) / 2**20
        )  # the operating system reports both only roughly
        with torch.no_grad():
            forward_ms = _shortest_ms(forward, place)
        return {
            "forward_ms": forward_ms,
            "forward_backward_ms": _shortest_ms(forward_backward, place),
            "memory_mib": memory,
        }


def _shortest_ms(function: Callable[[], Any], device: torch.device) -> float:
    return 1000 * min(wall_seconds(function, device) for _ in range(REPEATS))


def _memory(device: torch.device, peak: bool) -> int:
    """Bytes allocated on the GPU, or resident memory of this process; with `peak`, the high-water mark."""
    if device.type == "cuda" and not peak:
        return torch.cuda.memory_allocated()
    here = Path("/proc/self/statm")
    if peak or not here.exists():
        return peak_memory(device)
    return int(here.read_text().split()[1]) * resource.getpagesize()


def _ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Each kernel's forward and backward time divided by that of the math kernel."""
    times = {(row["kernel"], row["T"], row["head_dim"]): row.get("forward_backward_ms") for row in rows}
    ratios = {}
    for (kernel, length, head_dim), ms in times.items():
        plain = times["math", length, head_dim]
        if kernel != "math" and ms is not None and plain is not None:
            ratios[f"{kernel}/math ms T={length} head_dim={head_dim}"] = ms / plain
    return ratios
