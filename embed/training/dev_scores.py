"""Evaluation during training: loss and nDCG@10 on held-out examples."""

from collections.abc import Callable, Sequence

import torch
import torch.nn as nn
from torch import Tensor

from embed.network.padding import grouped, padded
from embed.training.batches import Collator, TaskData
from embed.training.step import Objective, Output
from gpt_core.common.extras import extra
from gpt_core.hardware.device import Numerics

RESULTS_PER_QUERY = 10
QUERIES_PER_BLOCK = 1024  # queries whose scores are in memory at a time


def evaluator(
    sets: Sequence[TaskData],
    shares: Sequence[float],
    batch_size: int,
    objective: Objective,
    collate: Collator,
    numerics: Numerics,
    tokens_per_forward: int,
) -> Callable[[nn.Module], dict[str, float]]:
    """Make an evaluation function for the training loop; every rank computes all of it.

    Args:
        sets: the evaluation datasets.
        shares: weight of each dataset in the loss.
        batch_size: examples per batch of the loss.
        objective: the training's objective.
        collate: makes batches for a single rank.
        numerics: dtype of the forward.
        tokens_per_forward: maximum number of tokens per forward, padding included.

    Returns:
        A function: `Trainee` → metrics. "val_loss" is the weighted mean of the datasets' losses. "nDCG@10", for pairs,
        is the mean over the datasets, each searched among all its documents. For several datasets, both metrics are
        also given for each.
    """

    def evaluate(model: nn.Module) -> dict[str, float]:
        losses, gains = {}, {}
        for data in sets:
            with numerics.autocast():
                out = encode(model, data, collate, tokens_per_forward)
            total = 0.0
            for start in range(0, len(data.examples), batch_size):
                stop = min(start + batch_size, len(data.examples))
                batch = collate.outline(data, [(i, 0) for i in range(start, stop)]).to(out.vectors.device)
                loss = objective(out.vectors[batch.entries], batch, out.log_temperature, out.projection)
                total += (stop - start) * float(loss)
            losses[data.name] = total / len(data.examples)
            if data.paired:
                gains[data.name] = ndcg(data, out.vectors)
        figures = {"val_loss": sum(s * x for s, x in zip(shares, losses.values(), strict=True)) / sum(shares)}
        if gains:
            figures["nDCG@10"] = sum(gains.values()) / len(gains)
        if len(sets) > 1:
            figures |= {f"loss {name}": value for name, value in losses.items()}
            figures |= {f"nDCG@10 {name}": value for name, value in gains.items()}
        return figures

    return evaluate


def encode(model: nn.Module, data: TaskData, collate: Collator, tokens_per_forward: int) -> Output:
    """Run `model`, a `Trainee`, on all texts of `data`; the output's vectors are (len(data.texts), d)."""
    rows = collate.rows(data, range(len(data.texts)))
    device = next(model.parameters()).device
    outputs, order = [], list[int]()
    for places in grouped(rows, tokens_per_forward):
        outputs.append(model(*padded([rows[i] for i in places], device)))
        order += places
    vectors = torch.cat([output.vectors for output in outputs])
    return outputs[0]._replace(vectors=vectors[torch.tensor(order, device=device).argsort()])


def ndcg(data: TaskData, vectors: Tensor) -> float:
    """Mean nDCG@10 (ir-measures) of searching each query's positives among all documents of `data`."""
    with extra("train"):
        import ir_measures
    queries = [i for i, (role, _) in enumerate(data.texts) if role == "query"]
    documents = [i for i, (role, _) in enumerate(data.texts) if role == "document"]
    qrels: dict[str, dict[str, int]] = {str(i): {} for i in queries}
    for i, j in data.answers([data.texts[i] for i in queries], [data.texts[i] for i in documents]):
        qrels[str(queries[i])][str(documents[j])] = 1
    run: dict[str, dict[str, float]] = {}
    for start in range(0, len(queries), QUERIES_PER_BLOCK):
        some = queries[start : start + QUERIES_PER_BLOCK]
        scores, found = (vectors[some] @ vectors[documents].T).topk(min(RESULTS_PER_QUERY, len(documents)))
        for query, row, places in zip(some, scores.tolist(), found.tolist(), strict=True):
            run[str(query)] = {str(documents[p]): score for p, score in zip(places, row, strict=True)}
    measure = ir_measures.nDCG @ 10
    return float(ir_measures.calc_aggregate([measure], qrels, run)[measure])
