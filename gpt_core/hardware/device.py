"""Device, dtype, threads and compilation; time and memory measurements."""

import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from gpt_core.common.errors import InputError

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]


def pick_device(name: DeviceName) -> torch.device:
    """The torch device `name`; auto: cuda, else mps, else cpu.

    Raises:
        InputError: if this machine has no such device.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(n for n in ("cuda", "mps", "cpu") if present[n])
    if not present[name]:
        here = ", ".join(n for n, there in present.items() if there)
        raise InputError(
            f"device is {name}, which torch does not find on this machine; use one of: {here}, auto."
        )
    return torch.device(name)


@dataclass(frozen=True)
class Numerics:
    """The settings that affect rounding; saved in checkpoints so that a resumed run rounds alike.

    Attributes:
        device: "cpu", "cuda" or "mps".
        dtype: "float32", "bfloat16" or "float16", the autocast dtype of matmuls.
        threads: number of CPU threads per rank.
        compile: whether the blocks are compiled.
    """

    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1
    compile: bool = False

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as a torch.dtype."""
        return getattr(torch, self.dtype)

    def autocast(self) -> AbstractContextManager[Any]:
        """Context for matmuls in `dtype`; does nothing for float32."""
        return torch.autocast(self.device, self.torch_dtype, enabled=self.dtype != "float32")

    def as_dict(self) -> dict[str, Any]:
        """The fields as saved in a checkpoint."""
        return asdict(self)


def available_cores(system: Path = Path("/sys")) -> int:
    """Number of physical CPU cores that this process may use, by its affinity and its container's CPU quota.

    Args:
        system: where Linux describes the processors and the quota; other systems do not, so all CPUs count as cores.
    """
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    # Hyper-threads share their core's arithmetic units, so a thread on each would not multiply faster.
    cores = set()
    for cpu in cpus:
        siblings = system / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        cores.add(siblings.read_text() if siblings.exists() else str(cpu))
    limit = system / "fs/cgroup/cpu.max"  # microseconds of CPU time per period, or "max"; and the period
    quota, _, period = (limit.read_text() if limit.exists() else "max").partition(" ")
    allowed = math.ceil(int(quota) / int(period)) if quota.isdigit() else len(cores)
    return max(1, min(len(cores), allowed))


def wall_seconds(function: Callable[[], Any], device: torch.device) -> float:
    """Wall-clock seconds of one call, including the kernels that it launches on `device`."""
    gpu = device.type != "cpu"
    if gpu:
        torch.accelerator.synchronize(device)
    start = time.perf_counter()
    function()
    if gpu:
        torch.accelerator.synchronize(device)
    return time.perf_counter() - start


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: allocated on a CUDA device, otherwise resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # unlike getrusage, which a child process starts with its parent's peak
        return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])
    import resource  # missing on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def use_tf32(yes: bool) -> None:
    """Allow or forbid TF32 in float32 matmuls on NVIDIA GPUs."""
    torch.backends.cuda.matmul.allow_tf32 = yes
    torch.backends.cudnn.allow_tf32 = yes
