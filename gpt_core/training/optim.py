"""Optimizers and learning-rate schedules: Muon for the matrices of the blocks, AdamW for the rest; cosine or WSD.

Muon (Jordan et al. 2024) orthogonalises the momentum of a matrix and uses it as the update. AdamW: Loshchilov &
Hutter 2019.
"""

import math
import re

import torch.nn as nn
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer

from gpt_core.training.config import TrainConfig


def build_optimizers(model: nn.Module, config: TrainConfig) -> list[Optimizer]:
    """Create the optimizers for every parameter of `model` that requires a gradient.

    Each parameter group has its peak learning rate as `peak_lr`; `set_learning_rates` scales it. As in nanoGPT, AdamW
    decays parameters of two or more dimensions; biases and the scales of norms are not decayed.

    Args:
        model: parameters for which `is_block_matrix` is true go to Muon, if `config.optimizer` is "muon".
        config: optimizer, learning rates, weight decays, betas.
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
            Muon(matrices.values(), lr=config.muon_learning_rate, weight_decay=config.muon_weight_decay)
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
