"""Which windows of tokens a training step sees: a pure function of (seed, epoch, position).

nanoGPT draws windows at random with replacement, and after a resume draws the same ones again. Here an epoch is a
pseudo-random permutation of all windows, computed place by place: nothing is held in memory, a resume needs one
integer, and any number of ranks together see exactly what one rank alone would have seen.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpt_core.errors import InputError
from gpt_core.shards import Shard

IGNORED = -100  # a target that does not count

FEISTEL_ROUNDS = 6


class Windows:
    """All windows of up to `block_size` consecutive targets over some shards; they overlap nowhere.

    Every token of a shard but its first is a target in exactly one window; a shard's last window may be shorter.

    Raises:
        InputError: if the shards hold no target at all.
    """

    def __init__(self, shards: Sequence[Shard], block_size: int) -> None:
        self.shards = shards
        self.block_size = block_size
        self.n_targets = sum(max(0, len(s.tokens) - 1) for s in shards)
        counts = [-(-max(0, len(s.tokens) - 1) // block_size) for s in shards]
        self._ends = np.cumsum(counts)  # shard s holds the windows self._ends[s - 1] up to self._ends[s]
        if not len(self):
            raise InputError(f"{shards[0].path} holds fewer than two tokens: there is nothing to predict.")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> NDArray:
        """(n + 1,) ids of window `index`: the first n are the inputs, the last n their targets, n ≤ block_size."""
        s = int(np.searchsorted(self._ends, index, side="right"))
        start = (index - (int(self._ends[s - 1]) if s else 0)) * self.block_size
        return self.shards[s].tokens[start : start + self.block_size + 1]

    def rows(self, indices: Sequence[int] | NDArray) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, T) int64 of these windows; what a short window lacks are targets that do not count."""
        ids = torch.zeros(len(indices), self.block_size, dtype=torch.long)
        targets = torch.full_like(ids, IGNORED)
        for row, index in enumerate(indices):
            window = torch.from_numpy(self[int(index)].astype(np.int64))
            ids[row, : len(window) - 1] = window[:-1]
            targets[row, : len(window) - 1] = window[1:]
        return ids, targets

    def in_order(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All windows once, in the order of the text, for evaluation."""
        for start in range(0, len(self), batch_size):
            yield self.rows(range(start, min(start + batch_size, len(self))))


class Batches:
    """The endless stream of training batches; one item is this rank's list of micro-batches for one step.

    Args:
        windows: what there is to see.
        batch_size: windows per step over all ranks.
        micro_batch_size: windows per forward on one rank.
        seed: of the order.
        rank: this process's number.
        world_size: how many processes share a step.
        device: where the tensors go.

    Raises:
        InputError: if batch_size is not a multiple of micro_batch_size · world_size.
    """

    def __init__(
        self,
        windows: Windows,
        batch_size: int,
        micro_batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        if batch_size < 1 or micro_batch_size < 1 or batch_size % (micro_batch_size * world_size):
            raise InputError(
                f"batch_size is {batch_size}; it must be a multiple of micro_batch_size ({micro_batch_size}) times "
                f"the number of ranks ({world_size})."
            )
        self.windows = windows
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.device = torch.device(device)
        self.position = 0  # windows that all ranks together have seen since the beginning

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> list[tuple[Tensor, Tensor]]:
        """This step's micro-batches: inputs and targets (micro_batch_size, T) int64."""
        share = self.batch_size // self.world_size
        first = self.position + self.rank * share
        indices = self.order(np.arange(first, first + share))
        self.position += self.batch_size
        micro_batches = []
        for start in range(0, share, self.micro_batch_size):
            ids, targets = self.windows.rows(indices[start : start + self.micro_batch_size])
            micro_batches.append((ids.to(self.device), targets.to(self.device)))
        return micro_batches

    def order(self, positions: NDArray) -> NDArray:
        """The windows at these positions of the endless stream; each epoch is a permutation of its own."""
        epochs, places = np.divmod(positions, len(self.windows))
        indices = np.empty_like(positions)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            indices[chosen] = permute(places[chosen], len(self.windows), self.seed, int(epoch))
        return indices

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, and what of."""
        return {"position": self.position, "seed": self.seed, "n_windows": len(self.windows)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; the batch size and the number of ranks may be others.

        Raises:
            InputError: if the data or the seed differ, since the position would then mean other windows.
        """
        for key, mine in (("seed", self.seed), ("n_windows", len(self.windows))):
            if state[key] != mine:
                raise InputError(
                    f"The checkpoint was made with {key} = {state[key]}, but this run has {mine}; resume with the "
                    "same data, block_size and seed, or choose another out_dir."
                )
        self.position = state["position"]


def permute(places: NDArray, n: int, seed: int, epoch: int) -> NDArray:
    """Where a pseudo-random permutation of range(n) sends `places`: a Feistel cipher with cycle walking.

    A Feistel network permutes the numbers of 2·h bits; walking on until the image is below n makes it a permutation
    of range(n) (Black & Rogaway, "Ciphers with arbitrary finite domains", 2002). It needs no memory, and no library's
    random generator can change it under a running experiment.
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(half)) - 1)
    rounds = _mix(np.arange(1, FEISTEL_ROUNDS + 1, dtype=np.uint64) + np.uint64(epoch << 8))
    keys = _mix(np.full(FEISTEL_ROUNDS, seed % 2**64, dtype=np.uint64) + rounds)

    def encipher(x: NDArray) -> NDArray:
        left, right = x >> half, x & low
        for key in keys:
            left, right = right, left ^ (_mix(right + key) & low)
        return left << half | right

    image = encipher(places.astype(np.uint64))
    while (outside := image >= n).any():
        image[outside] = encipher(image[outside])
    return image.astype(np.int64)


def _mix(x: NDArray) -> NDArray:
    """splitmix64's finaliser (Steele, Lea & Flood 2014): every bit of x (uint64) changes half of the result's."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
