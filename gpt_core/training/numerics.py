"""Choose dtype, threads and compilation of a training run."""

import os
from pathlib import Path
from typing import Any

import torch

from gpt_core.common.errors import InputError
from gpt_core.hardware.capability import capability
from gpt_core.hardware.device import Numerics, available_cores, use_tf32
from gpt_core.hub import run_folder
from gpt_core.training.config import TrainConfig
from gpt_core.training.parallel.ranks import Ranks


def choose_numerics(
    config: TrainConfig,
    device: torch.device,
    n_local: int,
    recorded: dict[str, Any] | None,
) -> Numerics:
    """Choose what `config` does not set: the values in `recorded` if given, else dtype by `capability` and all cores.

    Args:
        config: dtype, threads and compile; values other than None and "auto" are used as they are.
        device: device of the model.
        n_local: ranks on this machine, which share its cores.
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
    if dtype == "auto":
        dtype = capability(device.type).dtype
        if device.type == "cuda" and dtype == "float32":
            dtype = "float16"  # which all of CUDA's tensor cores multiply
    return Numerics(device.type, dtype, threads or cores, compiled)


def _cores(n_local: int) -> int:
    """Threads of this rank: physical cores / ranks, or OMP_NUM_THREADS if it is set (torchrun sets it to 1)."""
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        return max(1, int(os.environ["OMP_NUM_THREADS"]))
    return max(1, available_cores() // n_local)


def agree_on_numerics(config: TrainConfig, ranks: Ranks, resume: Path | None) -> Numerics:
    """Choose dtype, threads and compilation on rank 0 and broadcast them; sets the threads and TF32 of this process.

    Args:
        config: settings; see `choose_numerics` for values that are not set.
        ranks: the processes, which all use the same numerics.
        resume: checkpoint to resume; its numerics are reused.

    Raises:
        InputError: for float16 without CUDA.
    """
    use_tf32(config.tf32)
    recorded = None if resume is None else run_folder.load_state(resume)["numerics"]
    numerics = ranks.on_main(lambda: choose_numerics(config, ranks.device, ranks.local_world_size, recorded))
    torch.set_num_threads(numerics.threads)
    return numerics


def dtype_reason(config: TrainConfig, numerics: Numerics, resume: Path | None) -> str:
    """Why this dtype, to be printed: the configuration, the resumed checkpoint or the machine's capability."""
    if config.dtype != "auto":
        return "as configured"
    return capability(numerics.device).reason if resume is None else "as before"
