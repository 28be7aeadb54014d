"""Batches of a task: examples in a seeded order, divided into ranks and into micro-batches of similar rows."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gpt_core.tasks.examples import Example, Span
from gpt_core.tasks.inputs import InputFormat, InputRow
from gpt_core.tasks.settings import TaskSettings
from gpt_core.tasks.stream import ShuffledStream
from gpt_core.training.parallel.ranks import ALONE, Ranks

# Rows are padded to a multiple of the second number, short ones of the first: few different shapes bound the memory
# that a CPU maps.
LENGTH_STEPS = (8, 32)
SHORT = 64
# A micro-batch of at least this many tokens takes no rows that are much shorter than its longest one: padding them
# costs more than another forward.
ENOUGH_TOKENS = 256
MUCH_SHORTER = 0.8


class Unit(NamedTuple):
    """What gets one loss: the rows of an example, or for span one of them.

    Attributes:
        rows: its rows.
        target: index of the right label or choice; the score; for span the first and the last token of the answer in
            the row; None: unknown, or for span no answer.
    """

    rows: list[InputRow]
    target: float | tuple[int, int] | None

    def place(self, length: int) -> int:
        """Index of the target among the unit's logits, for span with rows padded to `length`; -1: None."""
        if isinstance(self.target, tuple):
            return self.target[0] * length + self.target[1]
        return -1 if self.target is None else int(self.target)


@dataclass(frozen=True, eq=False)
class TaskBatch:
    """Rows of M examples.

    Attributes:
        ids, begins, ends, counts: as for `TaskNetwork.forward`.
        targets: (M,) int64 index of the right label, choice or span; float32 score for similarity.
        weight: 0-dim; 0 for a batch that only keeps the ranks' numbers of forwards equal, else 1.
    """

    ids: Tensor
    begins: Tensor
    ends: Tensor
    counts: Tensor
    targets: Tensor
    weight: Tensor = field(default_factory=lambda: torch.ones(()))

    def to(self, device: torch.device) -> "TaskBatch":
        """The batch with its tensors on `device`."""
        return TaskBatch(*(x.to(device) for x in vars(self).values()))


class Collator:
    """Makes batches from examples.

    Args:
        inputs: makes rows.
        settings: labels, padding, and the longest answer.

    Attributes:
        n_long: number of rows so far whose answer has more than the longest answer's tokens; its first ones count.
    """

    def __init__(self, inputs: InputFormat, settings: TaskSettings) -> None:
        self.inputs, self.padding_mask = inputs, settings.padding_mask
        self.longest = settings.answer_tokens
        self.index = {label: i for i, label in enumerate(settings.labels)}
        self.n_long = 0

    def padded_length(self, length: int) -> int:
        """Tokens to which a row of `length` tokens is padded if it is the longest of a batch."""
        if not self.padding_mask:
            return self.inputs.max_tokens
        step = LENGTH_STEPS[length > SHORT]
        return min(self.inputs.max_tokens, -(-length // step) * step)

    def units(self, example: Example, rows: Sequence[InputRow]) -> list[Unit]:
        """All rows of an example as one unit; for span each part of the passage."""
        if self.inputs.task == "span":
            targets = [span_target(example.spans, row, self.longest) for row in rows]
            units = []
            for row, target in zip(rows, targets, strict=True):
                if target and target[1] - target[0] >= self.longest:
                    self.n_long += 1
                    target = target[0], target[0] + self.longest - 1
                units.append(Unit([row], target))
            return units
        if example.label is not None:
            return [Unit(list(rows), self.index[example.label])]
        return [Unit(list(rows), example.number)]

    def batch(self, units: Sequence[Unit]) -> TaskBatch:
        """Pad the rows of `units` to one length."""
        rows = [row for unit in units for row in unit.rows]
        length = self.padded_length(max(len(row) for row in rows))
        ids = torch.full((len(rows), length), self.inputs.pad_id)  # (N, T)
        begins, ends = (torch.empty(len(rows), dtype=torch.long) for _ in range(2))  # (N,) each
        for i, row in enumerate(rows):
            shift = 0 if self.padding_mask else length - len(row)
            ids[i, shift : shift + len(row)] = torch.from_numpy(row.ids.astype(np.int64))
            begins[i], ends[i] = shift + row.first, shift + len(row) - 1
        if self.inputs.task == "similarity":
            scores = [unit.target if isinstance(unit.target, float) else 0.0 for unit in units]
            targets = torch.tensor(scores)  # (M,)
        else:
            found = [unit.place(length) for unit in units]
            if self.inputs.task == "span":
                found = [length**2 if index < 0 else index for index in found]
            targets = torch.tensor(found)  # (M,)
        return TaskBatch(ids, begins, ends, torch.tensor([len(unit.rows) for unit in units]), targets)

    def micro_batches(self, units: Sequence[Unit], tokens: int) -> tuple[list[list[int]], list[TaskBatch]]:
        """Batches of at most `tokens` tokens, padding included, of units of similar length, the longest first.

        Returns:
            For each batch the positions of its units, and the batches.
        """
        lengths = [self.padded_length(max(len(row) for row in unit.rows)) for unit in units]
        order = sorted(range(len(units)), key=lambda i: lengths[i], reverse=True)
        groups: list[list[int]] = []
        size = 0  # tokens of the last group, padding included
        for i in order:
            longest = lengths[groups[-1][0]] if groups else 0
            more = len(units[i].rows) * longest
            uneven = size >= ENOUGH_TOKENS and lengths[i] < MUCH_SHORTER * longest
            if not groups or uneven or size + more > tokens:
                groups.append([])
                size, more = 0, len(units[i].rows) * lengths[i]
            groups[-1].append(i)
            size += more
        return groups, [self.batch([units[i] for i in group]) for group in groups]


def span_target(spans: Sequence[Span], row: InputRow, longest: int) -> tuple[int, int] | None:
    """The first and the last token, in `row`, of an answer that lies in its part of the passage; or None.

    The first answer of at most `longest` tokens, else the first one.
    """
    found = []
    for start, end in spans:
        if row.offsets and row.offsets[0][0] <= start and end <= row.offsets[-1][1]:
            # tokens that cover a part of the answer; several may cover one character
            covered = [i for i, (begin, stop) in enumerate(row.offsets) if begin < end and stop > start]
            if covered:
                found.append((row.first + covered[0], row.first + covered[-1]))
    return next((x for x in found if x[1] - x[0] < longest), found[0] if found else None)


class TaskBatches(ShuffledStream):
    """The endless stream of micro-batches of examples.

    Args:
        examples: the training examples.
        collate: makes batches.
        batch_size: examples per step, over all ranks.
        tokens: tokens of a micro-batch, padding included.
        seed: seed of the permutations.
        identity: further settings, by name, that must be equal for a run to resume.
        ranks: the processes.

    Raises:
        InputError: as `ShuffledStream`.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        collate: Collator,
        batch_size: int,
        tokens: int,
        seed: int,
        identity: dict[str, Any],
        ranks: Ranks = ALONE,
    ) -> None:
        digest = hashlib.sha256()
        for example in examples:
            digest.update(repr((example.texts, example.label, example.number, example.spans)).encode())
        super().__init__(len(examples), batch_size, seed, {"data": digest.hexdigest(), **identity}, ranks)
        self.examples, self.collate, self.tokens = examples, collate, tokens

    def __next__(self) -> list[TaskBatch]:
        """This rank's micro-batches of the next step."""
        mine = [self.examples[i] for i in self.next_indices()]
        rows = self.collate.inputs.rows(mine)
        units = [unit for e, r in zip(mine, rows, strict=True) for unit in self.collate.units(e, r)]
        _, batches = self.collate.micro_batches(units, self.tokens)
        # Every forward of a sharded model needs all ranks, so all need the same number.
        missing = self.ranks.max(len(batches)) - len(batches)
        batches = [replace(batches[-1], weight=torch.zeros(()))] * missing + batches
        return [batch.to(self.ranks.device) for batch in batches]

    def describe(self, step: int) -> str:
        """The data in the batch of step `step` (from 1), as text for an error message."""
        return f"{self.batch_size} examples, the first of them {self.examples[self.first_index(step)].place}"
