"""Where a linear layer towards a teacher's vectors begins: at the ridge regression on some of the texts."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from embed.network.padding import grouped, padded
from embed.training.batches import Collator, TaskData
from embed.training.step import Trainee

TEXTS = 16384
RIDGE = 1e-2  # of the mean variance of what goes in


@torch.no_grad()
def fit_to_teacher(
    trainee: Trainee, sets: Sequence[TaskData], collate: Collator, tokens_per_forward: int
) -> None:
    """Let what leads to the teacher's vectors begin as the best linear map of what the network gives now.

    That is the projection, if there is one, else the network's one dense layer.

    Args:
        trainee: on its device.
        sets: texts with the teacher's vectors; some of them are taken at random.
        collate: cuts texts.
        tokens_per_forward: padded tokens in a forward.
    """
    network, device = trainee.network.eval(), trainee.log_temperature.device  # without dropout
    texts = [collate.prompts[role] + text for data in sets for role, text in data.texts]
    vectors = np.concatenate([data.teacher for data in sets if data.teacher is not None])
    chosen = np.random.default_rng(0).permutation(len(texts))[:TEXTS]
    rows = collate.tokenize([texts[i] for i in chosen])
    made, order = [], []
    for places in grouped(rows, tokens_per_forward):
        batch = padded([rows[i] for i in places], device)
        made.append(network.pooled(*batch) if trainee.projection is None else network(*batch))
        order += places
    # On the CPU: MPS has no float64.
    weight, bias = ridge_regression(torch.cat(made).cpu(), torch.from_numpy(vectors[chosen[order]]))
    # Vectors are brought to unit length, so any factor will do: that of a fresh linear layer's weights, whose size
    # learning rates are made for.
    scale = weight.shape[1] ** -0.5 / weight.square().mean().sqrt()
    weight, bias = scale * weight, scale * bias
    if trainee.projection is not None:
        trainee.projection.copy_(weight)
    else:
        (dense,) = network.dense_layers
        dense.linear.weight.copy_(weight)
        dense.linear.bias.copy_(bias)


def ridge_regression(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """W (e, d) and b (e,), float32, that minimise |x W^T + b - y|^2 + ridge |W|^2; x is (n, d), y (n, e)."""
    x, y = x.double(), y.double()
    mean_x, mean_y = x.mean(dim=0), y.mean(dim=0)
    x, y = x - mean_x, y - mean_y
    gram = x.mT @ x
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weight = torch.linalg.solve(gram + ridge, x.mT @ y).mT
    return weight.float(), (mean_y - weight @ mean_x).float()
