"""Which dtype and kernels a machine is fast at: one table by capability, with the reason for each choice."""

from functools import cache
from typing import Literal, NamedTuple

import torch


class Capability(NamedTuple):
    """A row of the table.

    Attributes:
        dtype: the faster one for matrix products, in training and in inference.
        onednn: whether oneDNN's float32 linear layers are faster than MKL's, which torch calls.
        reason: the property of the machine that decides, to be printed.
    """

    dtype: Literal["float32", "bfloat16"]
    onednn: bool
    reason: str


@cache
def capability(device_type: str) -> Capability:
    """The row of the table for the device "cpu", "cuda" or "mps" of this machine.

    The figures behind the rows are in docs/log.md, "A table by capability instead of measurements at start-up".
    """
    if device_type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Capability("bfloat16", False, "the GPU multiplies bfloat16")
        return Capability("float32", False, "the GPU does not multiply bfloat16")
    if device_type != "cpu":
        return Capability("float32", False, f"bfloat16 was never measured on {device_type}")
    cpu = torch.cpu.get_capabilities()
    name = cpu.get("cpu_name", cpu["architecture"])
    onednn = "AMD" in name and cpu.get("avx512_f", False)  # MKL uses AVX-512 on Intel's processors only
    for instructions, key in (("AMX", "amx_bf16"), ("AVX-512 bf16", "avx512_bf16")):
        if cpu.get(key, False):
            return Capability("bfloat16", onednn, f"{name} has {instructions}")
    return Capability("float32", onednn, f"{name} has neither AMX nor AVX-512 bf16, so bfloat16 is slower")
