"""Where a model runs."""

from typing import Literal

import torch

from gpt_core.errors import InputError

DeviceName = Literal["auto", "cpu", "cuda", "mps"]


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
