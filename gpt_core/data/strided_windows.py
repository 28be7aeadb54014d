"""Overlapping windows over token shards, for evaluation."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpt_core.common.errors import InputError
from gpt_core.data.batches import IGNORED, Windows
from gpt_core.data.shards import Shard


class StridedWindows:
    """Overlapping windows over some shards, for an evaluation in which every target has a long context.

    The first window of a shard is as in `Windows`; each further one has `stride` new targets, which the tokens before
    them precede, `block_size` in all. Only new targets count, so every token of a shard but its first is a target once.

    Args:
        shards: the data.
        block_size: inputs of a window.
        stride: new targets of a window, at most block_size.

    Raises:
        InputError: as `Windows`, or for a stride that is not from 1 to block_size.
    """

    def __init__(self, shards: Sequence[Shard], block_size: int, stride: int) -> None:
        if not 1 <= stride <= block_size:
            raise InputError(f"stride is {stride}; expected 1 to {block_size}, the length of a window.")
        self.shards, self.block_size = shards, block_size
        self.n_targets = Windows(shards, block_size).n_targets
        # of each window: shard, end of its targets (exclusive), number of its new targets
        self._windows: list[tuple[int, int, int]] = []
        for number, shard in enumerate(shards):
            size, end = len(shard.tokens), 1
            while end < size:
                new = min(size - end, block_size if end == 1 else stride)
                end += new
                self._windows.append((number, end, new))

    def __len__(self) -> int:
        return len(self._windows)

    def rows(self, indices: Sequence[int] | NDArray) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, T) int64 of these windows; targets that do not count are IGNORED."""
        ids = torch.zeros(len(indices), self.block_size, dtype=torch.long)
        targets = torch.full_like(ids, IGNORED)
        for row, index in enumerate(indices):
            shard, end, new = self._windows[index]
            start = max(0, end - 1 - self.block_size)
            tokens = torch.from_numpy(self.shards[shard].tokens[start:end].astype(np.int64))
            ids[row, : len(tokens) - 1] = tokens[:-1]
            targets[row, len(tokens) - 1 - new : len(tokens) - 1] = tokens[-new:]
        return ids, targets

    def in_order(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All windows once, in the order of the text, in batches of `batch_size`."""
        for start in range(0, len(self), batch_size):
            yield self.rows(range(start, min(start + batch_size, len(self))))
