"""Where a model runs, and how: device, number format, threads, compilation."""

import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from gpt_core.common.errors import InputError

if TYPE_CHECKING:
    pass

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]

GAIN = 1.3  # so many times faster must bfloat16, or all cores, be on a CPU to be chosen


def pick_device(name: DeviceName) -> torch.device:
    """The device called `name`; auto: cuda, else mps, else cpu.

    Raises:
        InputError: if this machine has no such device.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(n for n in ("cuda", "mps", "cpu") if present[n])
    if not present[name]:
        here = ", ".join(n for n, there in present.items() if there)
        raise InputError(f"device is {name}, which torch does not find on this machine; it has {here}.")
    return torch.device(name)


@dataclass(frozen=True)
class Numerics:
    """What decides how sums are rounded; a checkpoint records it, so that a resumed run rounds likewise.

    Attributes:
        device: "cpu", "cuda" or "mps".
        dtype: "float32", "bfloat16" or "float16", of the matrix products under autocast.
        threads: CPU threads of one rank.
        compile: whether the blocks are compiled.
    """

    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1
    compile: bool = False

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch's object."""
        return getattr(torch, self.dtype)

    def autocast(self) -> AbstractContextManager[Any]:
        """Matrix products in `dtype`; does nothing for float32."""
        return torch.autocast(self.device, self.torch_dtype, enabled=self.dtype != "float32")

    def as_dict(self) -> dict[str, Any]:
        """As a checkpoint records it."""
        return asdict(self)


def available_cores() -> int:
    """Cores of the machine that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def wall_seconds(function: Callable[[], Any], device: torch.device) -> float:
    """How long a call takes, until `device` has done what it was told."""
    gpu = device.type != "cpu"
    if gpu:
        torch.accelerator.synchronize(device)
    start = time.perf_counter()
    function()
    if gpu:
        torch.accelerator.synchronize(device)
    return time.perf_counter() - start


def peak_memory(device: torch.device) -> int:
    """Bytes that were allocated on a GPU at most, or that this process has taken of the CPU's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would tell a new process the peak of the one that started it
        return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])
    import resource  # which Windows lacks

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def use_tf32(yes: bool) -> None:
    """Let float32 matrix products on NVIDIA GPUs use TF32, or not."""
    torch.backends.cuda.matmul.allow_tf32 = yes
    torch.backends.cudnn.allow_tf32 = yes
