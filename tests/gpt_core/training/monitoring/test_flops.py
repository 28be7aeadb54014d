"""The two parts of MFU: FLOPs per token, and the machine's peak FLOP/s."""

import time
from functools import partial

import pytest
import torch

from gpt_core.model.config import GPTConfig
from gpt_core.model.gpt import GPT
from gpt_core.training.monitoring import flops
from gpt_core.training.monitoring.flops import flops_per_token, known_flops, peak_flops

SHAPES = {
    "gpt2": GPTConfig.gpt2(vocab_size=31, block_size=16, n_layer=2, n_head=2, n_embd=8),
    "qwen3": GPTConfig(
        vocab_size=31, block_size=16, n_layer=3, n_head=4, n_kv_head=2, n_embd=8, head_dim=6, n_inner=20
    ),
    "untied": GPTConfig(
        vocab_size=31, block_size=16, n_layer=1, n_head=2, n_kv_head=2, n_embd=8, head_dim=4, n_inner=20,
        tie_embeddings=False, qk_norm=False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_a_token_costs_six_operations_per_matmul_weight(name: str) -> None:
    config = SHAPES[name]
    model = GPT(config)
    looked_up = ["wpe.weight"] if config.tie_embeddings else ["wpe.weight", "wte.weight"]
    met = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2 and n not in looked_up)
    attention = 12 * config.n_layer * config.n_head * config.head_dim * 10
    assert flops_per_token(config, block_size=10) == 6 * met + attention


def test_flops_of_gpt2_agree_with_nanogpt() -> None:
    # nanoGPT, which counts 1-dim parameters, too: 124.3 M without positions
    assert flops_per_token(GPTConfig.gpt2(), 1024) == pytest.approx(
        6 * 123.65e6 + 12 * 12 * 768 * 1024, rel=2e-3
    )


@pytest.mark.parametrize(
    ("name", "dtype", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, 989.5),
        ("NVIDIA H100 PCIe", torch.bfloat16, 756.5),
        ("NVIDIA H200", torch.float16, 989.5),
        ("NVIDIA A100-SXM4-80GB", torch.bfloat16, 312),
        ("NVIDIA L4", torch.bfloat16, 121),
        ("NVIDIA L40S", torch.bfloat16, 362.05),
        ("NVIDIA GeForce RTX 4090", torch.bfloat16, 165.2),
        ("AMD Instinct MI300X", torch.bfloat16, 1307.4),
        ("Tesla V100-SXM2-16GB", torch.float16, 125),
        ("Tesla V100-PCIE-16GB", torch.float16, 112),
    ],
)
def test_gpus_are_known_by_name(name: str, dtype: torch.dtype, tera: float) -> None:
    assert known_flops(name, dtype) == pytest.approx(tera * 1e12)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("Tesla T4", torch.bfloat16),
        ("NVIDIA H100 80GB HBM3", torch.float32),
        ("NVIDIA L40", torch.bfloat16),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", torch.bfloat16),
        ("NVIDIA GeForce RTX 3090 Ti", torch.bfloat16),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", torch.bfloat16),
    ],
)
def test_other_devices_have_no_known_peak(name: str, dtype: torch.dtype) -> None:
    assert known_flops(name, dtype) is None


def test_the_measured_peak_is_near_that_of_a_matmul() -> None:
    peak = peak_flops(torch.device("cpu"), torch.float32)
    a, seconds = torch.randn(512, 512), []
    for _ in range(5):
        begin = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - begin)
    assert 0.1 * peak < 2 * 512**3 / min(seconds) < 5 * peak


def test_the_measured_peak_does_not_depend_on_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second product waits for another process: a machine of 1 TFLOP/s with 20 µs of overhead, simulated."""
    calls = 0

    def clock(product: partial[torch.Tensor], device: torch.device) -> float:
        nonlocal calls
        calls += 1
        return 2 * len(product.args[0]) ** 3 / 1e12 + 20e-6 + 0.008 * (calls % 2)

    monkeypatch.setattr(flops, "wall_seconds", clock)
    monkeypatch.setattr(flops, "MEASURE_SECONDS", 0.001)
    monkeypatch.setattr(torch, "mm", lambda a, b, out: out)  # products are not computed
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: a)
    assert flops.measured_flops(torch.device("cpu"), torch.float32) == pytest.approx(1e12, rel=0.05)
