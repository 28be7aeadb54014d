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
import torch.nn.functional as F

from gpt_core.common.errors import InputError

if TYPE_CHECKING:
    from gpt_core.training.config import TrainConfig

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]

GAIN = 1.3  # so many times faster must bfloat16, or all cores, be on a CPU to be chosen
MEASURED_TOKENS = 4096  # at most, to measure that with
LONG = 2.0  # seconds after which that is not repeated: it is very slow without instructions for bfloat16


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


def choose_numerics(
    config: "TrainConfig",
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
