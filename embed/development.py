"""What a training is judged by while it runs: its loss and nDCG@10 on examples that it does not learn from."""

from collections.abc import Callable, Sequence

import torch
import torch.nn as nn
from torch import Tensor

from embed.batches import Collator, TaskData
from embed.contrastive import EmbeddingLoss, grouped, padded
from gpt_core.device import Numerics
from gpt_core.extras import extra

DEPTH = 10  # results per query


def evaluator(
    sets: Sequence[TaskData],
    shares: Sequence[float],
    batch_size: int,
    loss: EmbeddingLoss,
    collate: Collator,
    numerics: Numerics,
) -> Callable[[nn.Module], dict[str, float]]:
    """An evaluation for the training loop; every rank does all of it.

    Args:
        sets: examples to judge by.
        shares: how much each set counts.
        batch_size: examples among which a query must find its own, for the loss.
        loss: the training's, of one process alone.
        collate: makes batches, for one process alone.
        numerics: number format.

    Returns:
        `Trainee` → "val_loss", the mean of the sets' losses by their shares, and of pairs "nDCG@10", the mean over the
        sets, a query's positive to be found among all of its set's documents. With several sets, both for each.
    """

    def evaluate(model: nn.Module) -> dict[str, float]:
        losses, gains = {}, {}
        for data in sets:
            total, count = 0.0, 0
            for start in range(0, len(data.examples), batch_size):
                stop = min(start + batch_size, len(data.examples))
                with numerics.autocast():
                    part, n = loss(model, collate(data, [(i, 0) for i in range(start, stop)]))
                total, count = total + float(part), count + n
            losses[data.name] = total / count
            if data.paired:
                with numerics.autocast():
                    gains[data.name] = ndcg(model, data, loss, collate)
        figures = {"val_loss": sum(s * x for s, x in zip(shares, losses.values(), strict=True)) / sum(shares)}
        if gains:
            figures["nDCG@10"] = sum(gains.values()) / len(gains)
        if len(sets) > 1:
            figures |= {f"loss {name}": value for name, value in losses.items()}
            figures |= {f"nDCG@10 {name}": value for name, value in gains.items()}
        return figures

    return evaluate


def ndcg(model: nn.Module, data: TaskData, loss: EmbeddingLoss, collate: Collator) -> float:
    """Mean nDCG@10 (ir-measures) of finding each query's positives among all documents of `data`."""
    with extra("train"):
        import ir_measures
    queries = sorted({example.query for example in data.examples})
    documents = sorted(
        {text for example in data.examples for text in (*example.positives, *example.negatives)}
    )
    number = {text: str(i) for i, text in enumerate(documents)}
    qrels: dict[str, dict[str, int]] = {query: {} for query in queries}
    for example in data.examples:
        qrels[example.query] |= {number[text]: 1 for text in example.positives}
    of_queries = vectors(model, [collate.prompts["query"] + text for text in queries], loss, collate)
    of_documents = vectors(model, [collate.prompts["document"] + text for text in documents], loss, collate)
    run: dict[str, dict[str, float]] = {}
    for start in range(0, len(queries), 1024):
        scores, places = (of_queries[start : start + 1024] @ of_documents.T).topk(min(DEPTH, len(documents)))
        for query, row, found in zip(
            queries[start : start + 1024], scores.tolist(), places.tolist(), strict=True
        ):
            run[query] = {str(place): score for place, score in zip(found, row, strict=True)}
    measure = ir_measures.nDCG @ 10
    return float(ir_measures.calc_aggregate([measure], qrels, run)[measure])


def vectors(model: nn.Module, texts: list[str], loss: EmbeddingLoss, collate: Collator) -> Tensor:
    """(n, d) float32 unit vectors of texts, on the CPU."""
    rows = collate.tokenize(texts)
    made: list[Tensor] = []
    order: list[int] = []
    for places in grouped(rows, loss.tokens_per_forward):
        made.append(model(*padded([rows[i] for i in places], loss.ranks.device)).vectors.cpu())
        order += places
    return torch.cat(made)[torch.tensor(order).argsort()]
