"""What a training starts with: a linear layer to the teacher's vectors by ridge regression, the vectors of a table."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from embed.encoding.peer_model import Teacher
from embed.network.network import Network
from embed.network.padding import grouped, padded
from embed.training.batches import Collator, TaskData
from embed.training.step import Trainee
from gpt_core.tokenizer.tokenizer import Tokenizer

MAX_TEXTS = 16384  # texts of the regression, and of the frequencies of tokens
SIF = 3e-4  # the constant a of Arora et al. 2017
# Characters of a token whose vector the teacher gives (docs/log.md, 2026-11-30, the start of a table)
LEAST_CHARACTERS = 3
RIDGE = 1e-2  # regularisation, as a fraction of the mean variance of the input


@torch.no_grad()
def fit_to_teacher(
    trainee: Trainee, sets: Sequence[TaskData], collate: Collator, tokens_per_forward: int
) -> None:
    """Initialise the linear layer that maps to the teacher's vectors by ridge regression, in place.

    The layer is the projection, if there is one, else the network's only dense layer.

    Args:
        trainee: the trainee, on its device.
        sets: datasets with the teacher's vectors; at most `MAX_TEXTS` texts are sampled at random.
        collate: tokenises and truncates texts.
        tokens_per_forward: maximum number of tokens per forward, padding included.
    """
    network, device = trainee.network.eval(), trainee.log_temperature.device  # eval: no dropout
    texts = [collate.prompts[role] + text for data in sets for role, text in data.texts]
    vectors = np.concatenate([data.teacher for data in sets if data.teacher is not None])
    chosen = np.random.default_rng(0).permutation(len(texts))[:MAX_TEXTS]
    rows = collate.tokenize([texts[i] for i in chosen])
    made, order = [], []
    for places in grouped(rows, tokens_per_forward):
        batch = padded([rows[i] for i in places], device)
        made.append(network.pooled(*batch) if trainee.projection is None else network(*batch))
        order += places
    # On the CPU: MPS has no float64.
    weight, bias = ridge_regression(torch.cat(made).cpu(), torch.from_numpy(vectors[chosen[order]]))
    # The output is normalised, so the scale is free; use that of default-initialised weights, for which the learning
    # rates are tuned.
    scale = weight.shape[1] ** -0.5 / weight.square().mean().sqrt()
    weight, bias = scale * weight, scale * bias
    if trainee.projection is not None:
        trainee.projection.copy_(weight)
    else:
        (dense,) = network.dense_layers
        dense.linear.weight.copy_(weight)
        dense.linear.bias.copy_(bias)


def ridge_regression(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """W (e, d) and b (e,), float32, that minimise |x Wᵀ + b - y|² + ridge |W|², for x (n, d) and y (n, e)."""
    x, y = x.double(), y.double()
    mean_x, mean_y = x.mean(dim=0), y.mean(dim=0)
    x, y = x - mean_x, y - mean_y
    gram = x.mT @ x
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weight = torch.linalg.solve(gram + ridge, x.mT @ y).mT
    return weight.float(), (mean_y - weight @ mean_x).float()


@torch.no_grad()
def start_table(
    network: Network,
    tokenizer: Tokenizer,
    sets: Sequence[TaskData],
    collate: Collator,
    teacher: Teacher | None,
) -> None:
    """Set the vectors of a table, in place: random or the teacher's, times each token's SIF weight a / (a + p).

    The weight (Arora et al. 2017) makes frequent tokens short, so that they count little in a mean.

    Args:
        network: a table.
        tokenizer: decodes each token, whose text the teacher encodes.
        sets: at most `MAX_TEXTS` of their texts, drawn at random, give the tokens' frequencies p.
        collate: tokenises texts.
        teacher: gives each token's vector, less the mean of all; None: vectors are random. If the table has another
            dimension, the teacher's principal components are taken, or random numbers fill the others. Tokens of one or
            two characters, which are parts of many words, stay random: the teacher's vectors of them are alike.
    """
    table = network.gpt.wte.weight  # (V, d)
    n_tokens, dimension = table.shape
    places = [(data, i) for data in sets for i in range(len(data.texts))]
    counts = np.zeros(n_tokens)
    for j in np.random.default_rng(0).permutation(len(places))[:MAX_TEXTS]:
        counts += np.bincount(collate.rows(places[j][0], [places[j][1]])[0], minlength=n_tokens)
    weights = torch.from_numpy(SIF / (SIF + counts / counts.sum()))[:, None]  # (V, 1)
    vectors = torch.randn(n_tokens, dimension, dtype=torch.float64) / dimension**0.5
    if teacher is not None:
        names = [tokenizer.decode([i]).strip() or " " for i in range(n_tokens)]
        own = torch.from_numpy(teacher.encode(names, "query")).double()
        own -= own.mean(dim=0)
        own /= own.norm(dim=1).mean()
        axes = torch.linalg.svd(own, full_matrices=False).Vh  # (e, e)
        n = min(dimension, len(axes))
        own = own @ axes[:n].T
        spelled = torch.tensor([len(name) >= LEAST_CHARACTERS for name in names])
        vectors[spelled, :n] = own[spelled]
        vectors[spelled] /= vectors[spelled].norm(dim=1).mean()
    vectors *= weights
    table.copy_(vectors / vectors.norm(dim=1).mean())
