"""Batches of token sequences: grouping by length, and padding."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Row = Sequence[int] | NDArray[np.int32]  # token ids


def grouped(rows: Sequence[Row], tokens: int, size: int | None = None) -> Iterator[list[int]]:
    """Group sequences by length, longest first.

    Args:
        rows: token ids of each sequence.
        tokens: maximum number of tokens of a group after padding.
        size: sequences per group; None: as many as fit `tokens`.

    Yields:
        Positions in `rows` of the sequences of a group.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]), reverse=True)
    while order:
        n = size or max(1, tokens // max(1, len(rows[order[0]])))
        yield order[:n]
        order = order[n:]


def padded(rows: Sequence[Row], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Pad sequences on the right: ids (B, T) int64 and a mask (B, T) bool, true at real tokens.

    B and T are at least 1: without sequences or tokens, the result is padding.
    """
    length = max((len(row) for row in rows), default=0)
    ids = torch.zeros(max(1, len(rows)), max(1, length), dtype=torch.long)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.as_tensor(row)
        mask[i, : len(row)] = True
    return ids.to(device), mask.to(device)
