"""Muon: torch's bits in bfloat16, and in float32 the polynomial of the singular values."""

import pytest
import torch
from torch import nn

from gpt_core.hardware.device import Numerics
from gpt_core.training.config import TrainConfig
from gpt_core.training.optim import Muon, build_optimizers, orthogonal

SHAPES = [(8, 8), (6, 11), (11, 6)]
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def test_in_bfloat16_the_weights_have_the_bits_of_torchs_muon():
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in SHAPES]
    ours, theirs = ([nn.Parameter(w.clone()) for w in start] for _ in range(2))
    mine = Muon(ours, torch.bfloat16, lr=0.03, weight_decay=0.2)
    other = torch.optim.Muon(theirs, lr=0.03, weight_decay=0.2)
    for _ in range(4):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape)
            q.grad = p.grad.clone()
        mine.step()
        other.step()
    for p, q in zip(ours, theirs, strict=True):
        assert torch.equal(p, q)
        assert torch.equal(mine.state[p]["momentum_buffer"], other.state[q]["momentum_buffer"])


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_follow_the_polynomial_and_vectors_stay(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape, dtype=torch.float64)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    s = s / s.norm()
    a, b, c = COEFFICIENTS
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    found = orthogonal(matrix, COEFFICIENTS, 5)
    torch.testing.assert_close(found, u @ torch.diag(s) @ v)
    assert s.min() > 0.3
    assert s.max() < 1.3
    assert not orthogonal(torch.zeros(shape), COEFFICIENTS, 5).any()


def test_training_in_float32_orthogonalises_in_float32():
    model = nn.Module()
    model.blocks = nn.ModuleList([nn.Linear(4, 4)])
    for dtype, expected in (
        ("float32", torch.float32),
        ("bfloat16", torch.bfloat16),
        ("float16", torch.bfloat16),
    ):
        muon, _ = build_optimizers(model, TrainConfig(optimizer="muon"), Numerics(dtype=dtype))
        assert muon.dtype == expected
    linear = model.blocks[0]
    muon, _ = build_optimizers(model, TrainConfig(optimizer="muon"), Numerics())
    before = linear.weight.detach().clone()
    linear.weight.grad = torch.randn(4, 4)
    muon.step()
    wanted = orthogonal(linear.weight.grad * 0.0975, COEFFICIENTS, 5)  # Nesterov's momentum of the first step
    rate = TrainConfig().muon_learning_rate
    decayed = before * (1 - rate * TrainConfig().muon_weight_decay)
    torch.testing.assert_close(linear.weight.detach(), decayed - rate * wanted)
