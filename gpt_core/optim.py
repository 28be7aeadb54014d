"""Optimizers and the learning rate: Muon for the matrices of the blocks, AdamW for the rest, a cosine with warm-up.

Muon (Jordan et al. 2024) orthogonalises the momentum of a matrix before it follows it. AdamW: Loshchilov & Hutter 2019.
"""

import math
import re

import torch.nn as nn
from torch.optim import AdamW, Muon, Optimizer


def build_optimizers(
    model: nn.Module,
    *,
    learning_rate: float,
    muon_learning_rate: float | None,
    weight_decay: float,
    muon_weight_decay: float,
    beta1: float,
    beta2: float,
) -> list[Optimizer]:
    """Optimizers over every parameter of `model` that requires a gradient.

    Each group carries its peak rate as `peak_lr`; `set_learning_rates` scales it. As in nanoGPT, AdamW decays what
    has two dimensions or more; biases and the scales of norms are not decayed.

    Args:
        model: matrices inside a module list called `blocks` are Muon's.
        learning_rate: AdamW's peak.
        muon_learning_rate: Muon's peak; None leaves the matrices to AdamW.
        weight_decay: AdamW's.
        muon_weight_decay: Muon's.
        beta1: AdamW's decay of the mean gradient.
        beta2: AdamW's decay of the mean squared gradient.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    matrices = {
        name: p
        for name, p in named.items()
        if muon_learning_rate is not None and p.dim() == 2 and re.search(r"(^|\.)blocks\.", name)
    }
    rest = [p for name, p in named.items() if name not in matrices]
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizers: list[Optimizer] = []
    if matrices:
        assert muon_learning_rate is not None
        optimizers.append(Muon(matrices.values(), lr=muon_learning_rate, weight_decay=muon_weight_decay))
    if rest:
        optimizers.append(AdamW(groups, lr=learning_rate, betas=(beta1, beta2), fused=True))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def set_learning_rates(optimizers: list[Optimizer], factor: float) -> None:
    """Give every group `factor` times its peak rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = factor * group["peak_lr"]


def cosine(step: int, warmup_iters: int, decay_iters: int, floor: float) -> float:
    """The share of the peak rate at `step` (from 0): up linearly, then down along half a cosine to `floor`."""
    if step < warmup_iters:
        return (step + 1) / (warmup_iters + 1)
    if step >= decay_iters:
        return floor
    progress = (step - warmup_iters) / (decay_iters - warmup_iters)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
