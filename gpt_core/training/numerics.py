"""Choose dtype, threads and compilation of a training run."""

import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from gpt_core.common.errors import InputError
from gpt_core.hardware.device import MIN_SPEEDUP, Numerics, available_cores, use_tf32, wall_seconds
from gpt_core.hub import run_folder
from gpt_core.training.config import TrainConfig
from gpt_core.training.parallel.ranks import Ranks

MAX_MEASURED_TOKENS = 4096  # tokens of the matrix product that is timed
MAX_SECONDS = 2.0  # stop repeating a timing after this: bfloat16 is very slow without hardware support


def choose_numerics(
    config: TrainConfig,
    device: torch.device,
    n_local: int,
    width: int,
    n_tokens: int,
    recorded: dict[str, Any] | None,
) -> Numerics:
    """Choose what `config` does not set: the values in `recorded` if given, else the fastest.

    On a CPU the fastest is measured with a matrix product of the model's width: bfloat16 is several times faster than
    float32 on processors with bfloat16 instructions and slower on others; one thread can be faster than several for a
    small model or on a busy machine.

    Args:
        config: dtype, threads and compile; values other than None and "auto" are used as they are.
        device: device of the model.
        n_local: ranks on this machine, which share its cores.
        width: n_embd.
        n_tokens: tokens in one forward.
        recorded: `Numerics` of the checkpoint to resume; ignored if its device type differs.

    Raises:
        InputError: for float16 without CUDA.
    """
    before = recorded if recorded is not None and recorded["device"] == device.type else {}
    dtype = before.get("dtype", "auto") if config.dtype == "auto" else config.dtype
    cores = _cores(n_local)
    threads = config.threads or before.get("threads")
    if config.threads is None and threads is not None and threads > cores:
        threads = None  # now there are more ranks per machine
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
    """The fastest (dtype, threads); a later candidate replaces the best only if it is MIN_SPEEDUP times faster."""
    best, least = (dtypes[0], thread_counts[0]), float("inf")
    for dtype in dtypes:
        for threads in thread_counts:
            seconds = _product_seconds(dtype, threads, width, min(n_tokens, MAX_MEASURED_TOKENS))
            if seconds * MIN_SPEEDUP < least:
                best, least = (dtype, threads), seconds
    return best


def _cores(n_local: int) -> int:
    """Cores for this rank: available cores / ranks, or OMP_NUM_THREADS if it is set (torchrun sets it to 1)."""
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        return max(1, int(os.environ["OMP_NUM_THREADS"]))
    return max(1, available_cores() // n_local)


def _product_seconds(dtype: str, threads: int, width: int, n_tokens: int) -> float:
    """Minimum time in seconds of forward and backward of a linear layer of an MLP's shape, autocast casts included."""
    torch.set_num_threads(threads)
    x = torch.randn(n_tokens, width, requires_grad=True)
    weight = torch.randn(4 * width, width, requires_grad=True)

    def forward_backward() -> None:
        with torch.autocast("cpu", getattr(torch, dtype), enabled=dtype != "float32"):
            y = F.gelu(F.linear(x, weight))
        y.sum().backward()

    times = list[float]()
    while len(times) < 5 and sum(times) < MAX_SECONDS:
        times.append(wall_seconds(forward_backward, x.device))
    return min(times)


def agree_on_numerics(
    config: TrainConfig, ranks: Ranks, width: int, n_tokens: int, resume: Path | None
) -> Numerics:
    """Choose dtype, threads and compilation on rank 0 and broadcast them; sets the threads and TF32 of this process.

    Args:
        config: settings; see `choose_numerics` for values that are not set.
        ranks: the processes, which all use the same numerics.
        width: n_embd.
        n_tokens: tokens in one forward.
        resume: checkpoint to resume; its numerics are reused.

    Raises:
        InputError: for float16 without CUDA.
    """
    use_tf32(config.tf32)
    recorded = None if resume is None else run_folder.load_state(resume)["numerics"]
    numerics = ranks.on_main(
        lambda: choose_numerics(config, ranks.device, ranks.local_world_size, width, n_tokens, recorded)
    )
    torch.set_num_threads(numerics.threads)
    return numerics
