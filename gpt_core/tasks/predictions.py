"""Predictions from logits: the best label, choice or span, with its probability."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpt_core.hardware.device import Numerics
from gpt_core.tasks.batches import Collator, Unit
from gpt_core.tasks.examples import Example
from gpt_core.tasks.inputs import InputRow
from gpt_core.tasks.metrics import correlations, exact_match, f1
from gpt_core.tasks.network import TaskNetwork
from gpt_core.tasks.settings import TaskSettings


@dataclass(frozen=True)
class Prediction:
    """The result for an example.

    Attributes:
        value: the label; the index of the choice; the similarity; the answer's text, "" for none.
        score: probability of `value`; of similarity, `value` itself.
        details: classification, entailment and choice: `scores`, all probabilities; span: `start` and `end`, code
            points of the passage (None for no answer), and `score_none`.
    """

    value: str | int | float
    score: float
    details: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Forwarded:
    """The logits of examples.

    Attributes:
        examples: the examples.
        units: their units.
        owners: index of each unit's example.
        logits: of each unit, (K,) float32 on the CPU.
    """

    examples: Sequence[Example]
    units: list[Unit]
    owners: list[int]
    logits: list[Tensor]


@torch.no_grad()
def forward(
    network: TaskNetwork, collate: Collator, examples: Sequence[Example], numerics: Numerics, tokens: int
) -> Forwarded:
    """Run the network, in evaluation mode, over examples.

    Args:
        network: the network.
        collate: makes batches with the network's settings.
        examples: the examples, labelled or not.
        numerics: dtype of matrix products.
        tokens: tokens of a forward, padding included.
    """
    owners: list[int] = []
    units: list[Unit] = []
    for i, rows in enumerate(collate.inputs.rows(examples)):
        found = collate.units(examples[i], rows)
        owners += [i] * len(found)
        units += found
    logits = [torch.empty(0)] * len(units)
    for places, batch in zip(*collate.micro_batches(units, tokens), strict=True):
        batch = batch.to(network.gpt.device)
        with numerics.autocast():
            out = network(batch.ids, batch.begins, batch.ends, batch.counts).logits  # (M, K)
        for place, row in zip(places, out.float().cpu(), strict=True):
            logits[place] = row
    return Forwarded(examples, units, owners, logits)


def predictions(settings: TaskSettings, done: Forwarded) -> list[Prediction]:
    """The prediction for each example."""
    mine: list[list[int]] = [[] for _ in done.examples]
    for unit, owner in enumerate(done.owners):
        mine[owner].append(unit)
    if settings.task == "span":
        return [
            best_span(
                example.texts[1], [done.units[u].rows[0] for u in units], [done.logits[u] for u in units]
            )
            for example, units in zip(done.examples, mine, strict=True)
        ]
    return [_best(done.logits[u], len(done.units[u].rows), settings) for (u,) in mine]


def mean_loss(settings: TaskSettings, done: Forwarded) -> float:
    """Mean of the loss over the units of labelled examples, without class weights."""
    losses = []
    for logits, unit in zip(done.logits, done.units, strict=True):
        if settings.task == "similarity":
            assert isinstance(unit.target, float)
            losses.append((float(logits[0]) - (unit.target - settings.mean) / settings.deviation) ** 2)
        else:  # the last logit of span, index -1, is that of no answer
            index = unit.place(round((len(logits) - 1) ** 0.5))
            losses.append(-float(logits.log_softmax(0)[index]))
    return sum(losses) / len(losses)


def _best(logits: Tensor, n_rows: int, settings: TaskSettings) -> Prediction:
    """The best of K labels or choices, or the score; `logits` is (K,)."""
    if settings.task == "similarity":
        value = settings.mean + settings.deviation * float(logits[0])
        return Prediction(value, value, {})
    if settings.task == "choice":
        logits = logits[:n_rows]
    probabilities = logits.softmax(0).tolist()
    best = max(range(len(probabilities)), key=probabilities.__getitem__)
    if settings.task == "choice":
        return Prediction(best, probabilities[best], {"scores": probabilities})
    scores = dict(zip(settings.labels, probabilities, strict=True))
    return Prediction(settings.labels[best], probabilities[best], {"scores": scores})


def best_span(passage: str, rows: Sequence[InputRow], logits: Sequence[Tensor]) -> Prediction:
    """The best span over the parts of a passage.

    Each part's logits are measured from its own "none", so that the parts are comparable; "none" counts once.

    Args:
        passage: the passage.
        rows: a row for each part.
        logits: of each part, (T·T + 1,).
    """
    relative = []  # (T, T) each
    for row, scores in zip(rows, logits, strict=True):
        length = round((len(scores) - 1) ** 0.5)
        matrix = (scores[:-1] - scores[-1]).view(length, length).clone()  # (T, T)
        blank = [
            row.first + i for i, (start, end) in enumerate(row.offsets) if not passage[start:end].strip()
        ]
        matrix[blank] = -math.inf  # white space neither begins nor ends an answer
        matrix[:, blank] = -math.inf
        relative.append(matrix)
    total = torch.logsumexp(torch.cat([*(x.flatten() for x in relative), torch.zeros(1)]), 0)  # 0-dim
    score_none = float((-total).exp())
    part = max(range(len(rows)), key=lambda i: float(relative[i].max()))
    best = float(relative[part].max())
    if best <= 0 or not rows[part].offsets:
        return Prediction("", score_none, {"start": None, "end": None, "score_none": score_none})
    first, last = divmod(int(relative[part].argmax()), len(relative[part]))
    offsets, before = rows[part].offsets, rows[part].first
    start, end = offsets[first - before][0], offsets[last - before][1]
    found = passage[start:end]
    start, end = start + len(found) - len(found.lstrip()), end - (len(found) - len(found.rstrip()))
    score = float((best - total).exp())
    return Prediction(passage[start:end], score, {"start": start, "end": end, "score_none": score_none})


def figures(
    settings: TaskSettings, examples: Sequence[Example], predictions: Sequence[Prediction]
) -> dict[str, float]:
    """Accuracy; for similarity Pearson and Spearman; for span EM and F1, for which "" is right where none is."""
    values = [p.value for p in predictions]
    if settings.task == "similarity":
        return correlations([float(v) for v in values], [e.number or 0.0 for e in examples])
    if settings.task == "span":
        pairs = [(str(value), example.answers) for value, example in zip(values, examples, strict=True)]
        return {
            "EM": sum(exact_match(v, a) if a else v == "" for v, a in pairs) / len(pairs),
            "F1": sum(f1(v, a) if a else v == "" for v, a in pairs) / len(pairs),
        }
    rights = [e.number if settings.task == "choice" else e.label for e in examples]
    return {"accuracy": sum(v == r for v, r in zip(values, rights, strict=True)) / len(rights)}
