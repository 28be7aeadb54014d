"""Tiny float64 trainees and batches, identical in every process, for test_step.py and contrastive_driver.py."""

import math
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from embed.data.pairs import Example
from embed.network.config import Pooling
from embed.network.network import Dense, Network
from embed.training.batches import Batch, Collator, TaskData
from embed.training.config import TrainEmbedderConfig
from embed.training.step import EmbeddingLoss, Objective, Trainee
from embed.training.trainable import choose_trainable
from gpt_core.model.config import GPTConfig
from gpt_core.model.gpt import GPT
from gpt_core.training.parallel.ranks import ALONE, Ranks

TEACHER, GUIDE = 7, 5  # dimensions of their vectors


def settings(**keys: Any) -> TrainEmbedderConfig:
    """A configuration; the models and data that it names are never loaded."""
    if keys.get("lm_weight"):
        keys["lm_data_dir"] = "shards"
    return TrainEmbedderConfig(**{"batch_size": 4, "lora_rank": 2, **keys})


def trainee(
    config: TrainEmbedderConfig, teacher: bool = False, dense: bool = False, layer: int | None = None
) -> Trainee:
    """A trainee of two blocks with random weights, including LoRA's."""
    torch.manual_seed(0)
    shape = GPTConfig(
        vocab_size=50, block_size=64, n_layer=2, n_head=2, n_kv_head=1, n_embd=16, head_dim=8, n_inner=24,
        dropout=config.dropout,
    )  # fmt: skip
    pooling = Pooling("weightedmean", layer, final_norm=layer is not None)
    network = Network(GPT(shape), pooling, [Dense(16, 12, activation="tanh")] if dense else [])
    model = Trainee(network, config.temperature, config.learn_temperature, TEACHER if teacher else None)
    choose_trainable(network, config)
    model = model.double()
    with torch.no_grad():
        model.log_temperature.fill_(math.log(config.temperature))  # exact in float64, not rounded to float32
        for p in model.network.parameters():
            p.add_(torch.randn_like(p) / 10)
    return model.train()


def examples(n: int, plain: bool = False, seed: int = 0, longest: int = 30) -> list[Example]:
    """Random texts. Some examples share a positive, some have another's query as positive; 0 or 2 negatives."""
    generator = random.Random(seed)

    def text() -> str:
        return "".join(generator.choices("abcdefghijklmnopqrstuvwxyz ", k=generator.randint(1, longest)))

    made: list[Example] = []
    for i in range(n):
        positive, query = text(), text()
        if i % 5 == 1:
            positive = made[-1].positives[0]
        if i % 7 == 3:
            positive = made[-2].query
        negatives = tuple(text() for _ in range(0 if i % 3 == 0 else 2))
        made.append(Example(query, (positive,), negatives))
    return [Example(example.query) for example in made] if plain else made


def batch(
    made: list[Example], config: TrainEmbedderConfig, rank: int = 0, world_size: int = 1, seed: int = 0
) -> Batch:
    """The batch of these examples as one rank gets it; each letter is a token."""
    data = TaskData("letters", made)
    n = len(data.texts)
    numbers = np.random.default_rng(seed)
    if config.teacher is not None:
        data.teacher = numbers.standard_normal((n, TEACHER))
    if config.guide is not None:
        data.guide = numbers.standard_normal((n, GUIDE))

    def tokenize(texts: list[str]) -> list[list[int]]:
        return [[ord(c) % 50 for c in text] for text in texts]

    lm = None
    if config.lm_weight:
        ids = torch.randint(50, (4, 9), generator=torch.Generator().manual_seed(seed))
        targets = ids.roll(-1, dims=1)
        targets[0, 3:] = -100  # gives the ranks different numbers of targets
        share = 4 // world_size
        lm = (ids[rank * share :][:share], targets[rank * share :][:share])
    collate = Collator(tokenize, {"query": "q", "document": ""}, config.n_negatives, rank, world_size)
    return collate(data, [(i, 0) for i in range(len(made))], lm)


def step(
    model: nn.Module,
    config: TrainEmbedderConfig,
    step_batch: Batch,
    tokens: int = 10**6,
    ranks: Ranks = ALONE,
) -> tuple[float, dict[str, Tensor]]:
    """Sum of the loss and gradients by name of one step with a fixed seed; clears the gradients of `model`."""
    torch.manual_seed(1)
    loss, count = EmbeddingLoss(Objective(config), tokens, ranks)(model, step_batch)
    assert not loss.requires_grad
    assert count == step_batch.n_queries
    return float(loss), taken_gradients(model)


def taken_gradients(model: nn.Module) -> dict[str, Tensor]:
    gradients = {}
    for name, p in model.named_parameters():
        if p.grad is not None:
            grad = p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
            gradients[name.removeprefix("module.")] = grad.clone()
            p.grad = None
    return gradients


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest absolute difference of the gradients; infinite if the parameter names differ."""
    if a.keys() != b.keys():
        return float("inf")
    return max(float((a[name] - b[name]).abs().max()) for name in a)
