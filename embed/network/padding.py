"""Rows of token ids as the network takes them: groups of like length, padded."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def grouped(rows: Sequence[Sequence[int]], tokens: int, size: int | None = None) -> Iterator[list[int]]:
    """Places of rows in groups of like length, longest first: as many as fit `tokens` when padded, or `size`."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]), reverse=True)
    while order:
        n = size or max(1, tokens // max(1, len(rows[order[0]])))
        yield order[:n]
        order = order[n:]


def padded(rows: Sequence[Sequence[int]], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Rows of ids as ids (B, T) int64, padded on the right, and a mask (B, T), true at real tokens.

    At least one token and one row, which is padding where there is none.
    """
    length = max((len(row) for row in rows), default=0)
    ids = torch.zeros(max(1, len(rows)), max(1, length), dtype=torch.long)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[i, : len(row)] = True
    return ids.to(device), mask.to(device)
