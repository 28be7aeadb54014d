"""FLOPs per token of training and peak FLOP/s of the device, for model FLOPs utilisation (MFU)."""

import time
from functools import partial

import torch

from gpt_core.hardware.device import wall_seconds
from gpt_core.model.config import GPTConfig

# Peak TFLOP/s of dense 16-bit matrix products with float32 accumulation, from the vendors' datasheets (which often show
# the figure with 2:4 sparsity, twice as high). A longer name must precede any name that it contains.
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
PEAK_TFLOPS_HALF = {"V100 PCIE": 112.0, "V100": 125.0, "T4": 65.0}  # their tensor cores support only float16
# Words that mark a slower variant of a listed GPU, or a part of one.
SLOWER_VARIANTS = {"Laptop", "Ti", "D", "MIG"}

MEASURE_SECONDS = 0.2
MIN_PRODUCT_SECONDS = 0.005  # of a matrix product large enough that its overhead is negligible
REPEATS = 5  # products of each size; the fastest is not slowed down by another process


def flops_per_token(config: GPTConfig, block_size: int) -> int:
    """Floating-point operations of forward and backward per token (PaLM's convention, Chowdhery et al. 2022, app. B).

    6·N + 12·L·H·Q·T: N is the number of weights in matrix products, i.e. in the blocks and the output layer (counted
    once if tied), without embedding tables; L layers with H heads of dimension Q attend over T = `block_size` tokens.
    Causal masking is not deducted; recomputation and the optimizer are not counted.
    """
    attention = 2 * config.n_embd * config.head_dim * (config.n_head + config.n_kv_head)
    mlp = config.n_embd * config.n_inner * (3 if config.mlp == "swiglu" else 2)
    n = config.n_layer * (attention + mlp) + config.n_embd * config.vocab_size
    return 6 * n + 12 * config.n_layer * config.n_head * config.head_dim * block_size


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Peak FLOP/s of matrix products of `dtype` on `device`.

    The datasheet figure for 16-bit products on known GPUs. Otherwise it is measured in a fraction of a second with a
    large matrix product, using the threads and the TF32 setting of this process.
    """
    if device.type == "cuda":
        known = known_flops(torch.cuda.get_device_name(device), dtype)
        if known is not None:
            return known
    return measured_flops(device, dtype)


def known_flops(name: str, dtype: torch.dtype) -> float | None:
    """Datasheet FLOP/s of the GPU called `name` for `dtype`; None if unknown."""
    table = {torch.bfloat16: PEAK_TFLOPS, torch.float16: PEAK_TFLOPS | PEAK_TFLOPS_HALF}.get(dtype, {})
    words = name.replace("-", " ").split()
    if SLOWER_VARIANTS & set(words):
        return None
    return next((1e12 * n for gpu, n in table.items() if f" {gpu} " in f" {' '.join(words)} "), None)


def measured_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Measured FLOP/s: the fastest of several products of two square matrices, of the best size.

    One slow product must not end the search at a small size, whose overhead is large: the peak would be too low.
    """
    size, best = 128, 0.0
    while True:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        product = partial(torch.mm, a, b, out=a @ b)  # the first product also selects the kernel
        seconds = min(wall_seconds(product, device) for _ in range(REPEATS))
        best = max(best, 2 * size**3 / seconds)
        if seconds > MIN_PRODUCT_SECONDS or size == 8192:
            break
        size *= 2
    end = time.perf_counter() + MEASURE_SECONDS
    while time.perf_counter() < end:
        best = max(best, 2 * size**3 / wall_seconds(product, device))
    return best
