"""A GPT with a task's head.

References: the heads of GPT-1 (Radford et al. 2018); an answer span as one softmax over all spans and "none", with a
biaffine term for its two ends (Dozat & Manning 2017).

Shapes: N rows of T tokens, C = n_embd, M examples of one or more rows each.
"""

import math
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from gpt_core.model.gpt import GPT
from gpt_core.model.layers import Dropout
from gpt_core.tasks.examples import Task

BIAFFINE_RANK = 64  # width in which the two ends of a span are compared


class TaskOutput(NamedTuple):
    """Result of a forward.

    Attributes:
        logits: (M, K). classification and entailment: of the K labels. similarity: the score, K = 1. choice: of the
            choices, -inf beyond an example's own. span: a row each, of the T·T spans (start·T + end, end included, -inf
            where there is none), then of "none".
        lm: (M,) mean loss of the language model on an example's tokens, or None.
    """

    logits: Tensor
    lm: Tensor | None = None


class SpanHead(nn.Module):
    """Scores of all spans of a row, and of none of them."""

    def __init__(self, width: int, longest: int) -> None:
        super().__init__()
        self.longest = longest
        self.ends = nn.Linear(width, 2)  # C → start, end
        self.first = nn.Linear(width, BIAFFINE_RANK, bias=False)
        self.last = nn.Linear(width, BIAFFINE_RANK, bias=False)
        self.none = nn.Linear(width, 1)

    def forward(self, hidden: Tensor, begins: Tensor, ends: Tensor) -> Tensor:
        """Logits of spans.

        Args:
            hidden: (N, T, C).
            begins: (N,) index of a passage's first token.
            ends: (N,) index of the extract token, which follows its last one.

        Returns:
            (N, T·T + 1); -inf for spans outside the passage, backwards or longer than `longest` tokens.
        """
        n_tokens = hidden.shape[1]
        start, end = self.ends(hidden).unbind(-1)  # (N, T) each
        pair = self.first(hidden) @ self.last(hidden).mT / math.sqrt(BIAFFINE_RANK)  # (N, T, T)
        scores = start[:, :, None] + end[:, None, :] + pair  # (N, T, T)
        place = torch.arange(n_tokens, device=hidden.device)  # (T,)
        inside = (place >= begins[:, None]) & (place < ends[:, None])  # (N, T)
        length = place - place[:, None]  # (T, T), end - start
        allowed = (
            inside[:, :, None] & inside[:, None, :] & (length >= 0) & (length < self.longest)
        )  # (N, T, T)
        scores = scores.masked_fill(~allowed, -math.inf).flatten(1)  # (N, T·T)
        none = self.none(hidden[torch.arange(len(ends), device=ends.device), ends])  # (N, 1)
        return torch.cat((scores, none), 1)  # (N, T·T + 1)


class TaskNetwork(nn.Module):
    """A GPT and a head that reads its last real token, or for span all of them.

    Args:
        gpt: the GPT.
        task: the task.
        n_labels: number of labels, for classification and entailment.
        answer_tokens: for span, the longest answer in tokens.
        lm: whether a forward also computes the language model's loss.
    """

    def __init__(self, gpt: GPT, task: Task, n_labels: int, answer_tokens: int, lm: bool = False) -> None:
        super().__init__()
        self.gpt, self.task, self.lm = gpt, task, lm
        width = gpt.config.n_embd
        n_outputs = n_labels if task in ("classification", "entailment") else 1
        self.head: nn.Module
        if task == "span":
            self.head = SpanHead(width, answer_tokens)
        else:
            self.head = nn.Linear(width, n_outputs, bias=False)  # as in transformers
        for name, p in self.head.named_parameters():
            nn.init.zeros_(p) if name.endswith("bias") else nn.init.normal_(p, std=0.02)
        self.drop = Dropout(gpt.config.dropout)

    @property
    def blocks(self) -> nn.ModuleList:
        """The GPT's blocks, which FSDP2 shards and torch.compile compiles one by one."""
        return self.gpt.blocks

    def forward(self, ids: Tensor, begins: Tensor, ends: Tensor, counts: Tensor) -> TaskOutput:
        """Logits of M examples.

        Args:
            ids: (N, T) int64. Padding after `ends` is not read; padding before a row is read like text.
            begins: (N,) int64, index of the first token after padding; for span of the passage's first token.
            ends: (N,) int64, index of the last real token.
            counts: (M,) int64 number of rows of each example, one after another.
        """
        hidden = self.gpt(ids, logits=False).hidden  # (N, T, C)
        lm = self._lm_loss(hidden, ids, begins, ends, counts) if self.lm else None  # (M,)
        hidden = self.drop(hidden)  # (N, T, C)
        if self.task == "span":
            return TaskOutput(self.head(hidden, begins, ends), lm)  # (N, T·T + 1), M = N
        last = hidden[torch.arange(len(ends), device=ends.device), ends]  # (N, C)
        if self.task == "similarity":  # GPT-1 adds the states of the two orders
            last = last.view(len(counts), 2, -1).sum(1)  # (M, C)
        logits = self.head(last)  # (N, K), or (M, 1) for similarity
        if self.task == "choice":
            per_example = logits[:, 0].split(counts.tolist())  # M times (number of choices,)
            logits = nn.utils.rnn.pad_sequence(
                per_example, batch_first=True, padding_value=-math.inf
            )  # (M, K)
        return TaskOutput(logits, lm)

    def _lm_loss(self, hidden: Tensor, ids: Tensor, begins: Tensor, ends: Tensor, counts: Tensor) -> Tensor:
        """(M,) mean over an example's rows of the mean loss of predicting a row's tokens from those before."""
        losses = []
        for row, sequence, begin, end in zip(hidden, ids, begins.tolist(), ends.tolist(), strict=True):
            begin = 0 if self.task == "span" else begin
            targets = F.pad(sequence[begin + 1 : end + 1], (0, 1), value=-100)  # (n,)
            losses.append(self.gpt.loss_sum(row[begin : end + 1], targets) / max(1, end - begin))  # 0-dim
        return torch.stack([x.mean() for x in torch.stack(losses).split(counts.tolist())])  # (N,) → (M,)
