"""How much arithmetic a training takes, and how much the machine could do: the two halves of MFU."""

import time
from functools import partial

import torch

from gpt_core.hardware.device import wall_seconds
from gpt_core.model.config import GPTConfig

# Peak of dense 16-bit matrix products summed in float32, in 10^12 operations a second, from the makers' datasheets
# (which like to show the figure with 2:4 sparsity, twice as high). A longer name goes before one that it contains.
PEAK_TFLOPS = {
    "H200 NVL": 835.5,
    "H200": 989.5,
    "H100 NVL": 835.5,
    "H100 PCIe": 756.5,
    "H100": 989.5,
    "A100": 312.0,
    "L40S": 362.05,
    "L4": 121.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
    "MI300X": 1307.4,
}
PEAK_TFLOPS_HALF = {"V100 PCIE": 112.0, "V100": 125.0, "T4": 65.0}  # their tensor cores know float16 alone
# In a name that otherwise looks known: a slower or a cut relation of it.
OTHERS = {"Laptop", "Ti", "D", "MIG"}

MEASURED_FOR = 0.05  # seconds
LARGE = 0.005  # seconds that a product takes whose overheads do not count


def flops_per_token(config: GPTConfig, block_size: int) -> int:
    """Floating-point operations that forward and backward take for one token, by PaLM's convention, appendix B.

    6·N + 12·L·H·Q·T: N counts the matrices that a token is multiplied with, so those of the blocks and the output
    layer (once, where it is the token embedding, too) but no table that is only looked up in; L layers of H heads of
    width Q attend over T = `block_size` tokens, causality not deducted; recomputation and the optimizer do not count.
    Chowdhery et al. 2022.
    """
    attention = 2 * config.n_embd * config.head_dim * (config.n_head + config.n_kv_head)
    mlp = config.n_embd * config.n_inner * (3 if config.mlp == "swiglu" else 2)
    n = config.n_layer * (attention + mlp) + config.n_embd * config.vocab_size
    return 6 * n + 12 * config.n_layer * config.n_head * config.head_dim * block_size


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second that matrix products of `dtype` reach on `device` at best.

    The datasheet's figure for 16-bit products on a GPU that is known by its name. Everywhere else it is measured, in
    a fraction of a second: what a large product reaches now, with the threads and the TF32 setting of this process.
    """
    if device.type == "cuda":
        known = known_flops(torch.cuda.get_device_name(device), dtype)
        if known is not None:
            return known
    return measured_flops(device, dtype)


def known_flops(name: str, dtype: torch.dtype) -> float | None:
    """The datasheet's figure for the GPU that calls itself `name`, if it has one for `dtype`."""
    table = {torch.bfloat16: PEAK_TFLOPS, torch.float16: PEAK_TFLOPS | PEAK_TFLOPS_HALF}.get(dtype, {})
    words = name.replace("-", " ").split()
    if OTHERS & set(words):
        return None
    return next((1e12 * n for gpu, n in table.items() if f" {gpu} " in f" {' '.join(words)} "), None)


def measured_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of the fastest of several products of two square matrices that are large enough."""
    size = 128
    while True:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        product = partial(torch.mm, a, b, out=a @ b)  # the first one also chooses the kernel
        seconds = wall_seconds(product, device)
        if seconds > LARGE or size == 8192:
            break
        size *= 2
    end = time.perf_counter() + MEASURED_FOR
    while time.perf_counter() < end:
        seconds = min(seconds, wall_seconds(product, device))
    return 2 * size**3 / seconds
