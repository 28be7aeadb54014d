"""Optimizers and learning-rate schedules: Muon for the matrices of the blocks, AdamW for the rest; cosine or WSD.

Muon (Jordan et al. 2024) orthogonalises the momentum of a matrix and uses it as the update. AdamW: Loshchilov &
Hutter 2019.
"""

import math
import re
from collections.abc import Iterable

import torch
import torch.nn as nn
from torch import Tensor
from torch.optim import AdamW, Optimizer

from gpt_core.hardware.device import Numerics
from gpt_core.training.config import TrainConfig


class Muon(torch.optim.Muon):
    """torch's Muon with a choice of the dtype in which it orthogonalises.

    torch has bfloat16 only, which takes 14 to 67 times as long as float32 on processors without instructions for it
    (docs/log.md, 2026-11-30, Muon without bfloat16 instructions).

    Args:
        params: matrices.
        dtype: of the products that orthogonalise.
        lr: learning rate.
        weight_decay: weight decay.
    """

    def __init__(self, params: Iterable[Tensor], dtype: torch.dtype, lr: float, weight_decay: float) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all matrices that have a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p.grad)
                momentum = self.state[p]["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(momentum, group["momentum"])  # Nesterov's
                update = orthogonal(update.to(self.dtype), group["ns_coefficients"], group["ns_steps"])
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * math.sqrt(max(1, p.shape[0] / p.shape[1])))


def orthogonal(matrix: Tensor, coefficients: tuple[float, float, float], n_steps: int) -> Tensor:
    """A matrix with the singular vectors of `matrix` and singular values near 1, by Newton-Schulz steps.

    Args:
        matrix: (M, N).
        coefficients: of x, x³ and x⁵ in the polynomial that a step applies to the singular values.
        n_steps: number of steps.
    """
    a, b, c = coefficients
    x = matrix if len(matrix) <= matrix.shape[1] else matrix.mT  # (m, n), m <= n
    x = x / x.norm().clamp(min=1e-7)  # no singular value is above 1
    for _ in range(n_steps):
        gram = x @ x.mT  # (m, m)
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)  # (m, n)
    return x if len(matrix) <= matrix.shape[1] else x.mT  # (M, N)


def build_optimizers(model: nn.Module, config: TrainConfig, numerics: Numerics) -> list[Optimizer]:
    """Create the optimizers for every parameter of `model` that requires a gradient.

    Each parameter group has its peak learning rate as `peak_lr`; `set_learning_rates` scales it. As in nanoGPT, AdamW
    decays parameters of two or more dimensions; biases and the scales of norms are not decayed.

    Args:
        model: parameters for which `is_block_matrix` is true go to Muon, if `config.optimizer` is "muon".
        config: optimizer, learning rates, weight decays, betas.
        numerics: in float32 Muon orthogonalises in float32, else in bfloat16.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    matrices = {
        name: p for name, p in named.items() if config.optimizer == "muon" and is_block_matrix(name, p)
    }
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}  # by (not decayed, learning rate)
    for name, p in named.items():
        if name not in matrices:
            groups.setdefault((p.dim() < 2, config.learning_rate_of(name, p.dim())), []).append(p)
    optimizers: list[Optimizer] = []
    if matrices:
        optimizers.append(
            Muon(
                matrices.values(),
                torch.float32 if numerics.dtype == "float32" else torch.bfloat16,
                lr=config.muon_learning_rate,
                weight_decay=config.muon_weight_decay,
            )
        )
    if groups:
        optimizers.append(
            AdamW(
                [
                    {
                        "params": groups[key],
                        "lr": key[1],
                        "weight_decay": 0.0 if key[0] else config.weight_decay,
                    }
                    for key in sorted(groups)
                ],
                betas=(config.beta1, config.beta2),
                fused=True,
            )
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def is_block_matrix(name: str, p: Tensor) -> bool:
    """Whether the parameter `name` is a matrix inside a module list called `blocks`; Muon trains these."""
    return p.dim() == 2 and re.search(r"(^|\.)blocks\.", name) is not None


def set_learning_rates(optimizers: list[Optimizer], factor: float) -> None:
    """Set the learning rate of every parameter group to `factor` times its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = factor * group["peak_lr"]


def learning_rate_factor(config: TrainConfig, step: int) -> float:
    """Learning rate at `step` (from 0) as a fraction of the peak: linear warm-up, then decay to `config.lr_floor`.

    cosine: half a cosine until `decay_iters`. wsd (Hu et al. 2024, MiniCPM): constant at the peak, then linear decay
    over the last `decay_fraction` of `decay_iters`.
    """
    if step < config.warmup_iters:
        return (step + 1) / (config.warmup_iters + 1)
    if config.schedule == "cosine":
        progress = min(1.0, (step - config.warmup_iters) / (config.decay_iters - config.warmup_iters))
        height = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        length = config.decay_fraction * config.decay_iters
        height = min(1.0, max(0.0, (config.decay_iters - step) / length))
    return config.lr_floor + (1 - config.lr_floor) * height
