"""The number format, threads and compilation of a training run."""

import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from gpt_core.common.errors import InputError
from gpt_core.hardware.device import GAIN, Numerics, available_cores, use_tf32, wall_seconds
from gpt_core.hub import run_folder
from gpt_core.training.config import TrainConfig
from gpt_core.training.parallel.ranks import Ranks

MEASURED_TOKENS = 4096  # at most, to measure that with


LONG = 2.0  # seconds after which that is not repeated: it is very slow without instructions for bfloat16


def choose_numerics(
    config: TrainConfig,
    device: torch.device,
    n_local: int,
    width: int,
    n_tokens: int,
    recorded: dict[str, Any] | None,
) -> Numerics:
    """Decide what the configuration leaves open: first as `recorded`, else what is fastest.

    On a CPU that is measured, on a matrix product of the model's width: bfloat16 is several times faster than float32
    where the processor has instructions for it and slower elsewhere, and for a small model, or on a machine that others
    use, one thread is faster than several.

    Args:
        config: dtype, threads and compile, as far as they are set.
        device: where the model runs.
        n_local: ranks on this machine, which share its cores.
        width: n_embd.
        n_tokens: tokens in one forward.
        recorded: the `Numerics` of the checkpoint that is resumed; not followed on another kind of device.

    Raises:
        InputError: for float16 without a GPU.
    """
    before = recorded if recorded is not None and recorded["device"] == device.type else {}
    dtype = before.get("dtype", "auto") if config.dtype == "auto" else config.dtype
    cores = _cores(n_local)
    threads = config.threads or before.get("threads")
    if config.threads is None and threads is not None and threads > cores:
        threads = None  # more ranks share the machine now
    if dtype == "float16" and device.type != "cuda":
        raise InputError(f"dtype is float16, which trains on cuda only, not on {device.type}; use bfloat16.")
    compiled = config.compile == "on"
    if config.compile == "auto" and config.parallel != "deepspeed":
        compiled = before.get("compile", device.type == "cuda")
    if device.type == "cuda" and dtype == "auto":
        dtype = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    if device.type == "mps" and dtype == "auto":
        dtype = "float32"
    if device.type == "cpu" and (dtype == "auto" or threads is None):
        dtypes = ["float32", "bfloat16"] if dtype == "auto" else [dtype]
        dtype, threads = _fastest(dtypes, [threads] if threads else sorted({1, cores}), width, n_tokens)
    return Numerics(device.type, dtype, threads or cores, compiled)


def _fastest(dtypes: list[str], thread_counts: list[int], width: int, n_tokens: int) -> tuple[str, int]:
    """The fastest pair; a later one in either list must gain GAIN to be worth its rounding, or another core."""
    best, least = (dtypes[0], thread_counts[0]), float("inf")
    for dtype in dtypes:
        for threads in thread_counts:
            seconds = _product_seconds(dtype, threads, width, min(n_tokens, MEASURED_TOKENS))
            if seconds * GAIN < least:
                best, least = (dtype, threads), seconds
    return best


def _cores(n_local: int) -> int:
    """Cores for this rank: its share of what the process may use, or OMP_NUM_THREADS, which torchrun sets to 1."""
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        return max(1, int(os.environ["OMP_NUM_THREADS"]))
    return max(1, available_cores() // n_local)


def _product_seconds(dtype: str, threads: int, width: int, n_tokens: int) -> float:
    """The shortest of a few forwards and backwards through a matrix of an MLP's shape, autocast's casts included."""
    torch.set_num_threads(threads)
    x = torch.randn(n_tokens, width, requires_grad=True)
    weight = torch.randn(4 * width, width, requires_grad=True)

    def forward_backward() -> None:
        with torch.autocast("cpu", getattr(torch, dtype), enabled=dtype != "float32"):
            y = F.gelu(F.linear(x, weight))
        y.sum().backward()

    times = list[float]()
    while len(times) < 5 and sum(times) < LONG:
        times.append(wall_seconds(forward_backward, x.device))
    return min(times)


def agree_on_numerics(
    config: TrainConfig, ranks: Ranks, width: int, n_tokens: int, resume: Path | None
) -> Numerics:
    """Number format, threads and compilation as rank 0 finds them best; the threads are set for this process.

    Args:
        config: what it leaves open is decided, first as in `resume`, a checkpoint, if that is given.
        ranks: all of them take the same.
        width: of the model, n_embd.
        n_tokens: tokens in one forward.
        resume: the checkpoint that the run goes on from.

    Raises:
        InputError: for float16 without a GPU.
    """
    use_tf32(config.tf32)
    recorded = None if resume is None else run_folder.load_state(resume)["numerics"]
    numerics = ranks.on_main(
        lambda: choose_numerics(config, ranks.device, ranks.local_world_size, width, n_tokens, recorded)
    )
    torch.set_num_threads(numerics.threads)
    return numerics
