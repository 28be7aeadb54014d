"""The endless stream of items of a training, in a seeded order, divided into ranks."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt_core.common.errors import InputError
from gpt_core.data.permutation import endless_order
from gpt_core.training.checkpoint import check_identity
from gpt_core.training.parallel.ranks import Ranks


class ShuffledStream:
    """Indices of items, each epoch a new permutation, and the position in them.

    A resumed run continues with the same batches as an uninterrupted one, with any number of ranks.

    Args:
        n_items: items in an epoch.
        batch_size: items per step, over all ranks.
        seed: seed of the permutations.
        identity: further settings, by name, that must be equal for a run to resume.
        ranks: the processes.

    Raises:
        InputError: if batch_size is not a multiple of the number of ranks.
    """

    def __init__(
        self, n_items: int, batch_size: int, seed: int, identity: dict[str, Any], ranks: Ranks
    ) -> None:
        if batch_size % ranks.world_size:
            raise InputError(
                f"batch_size is {batch_size}; expected a multiple of the number of ranks, {ranks.world_size}."
            )
        self.n_items, self.batch_size, self.seed, self.ranks = n_items, batch_size, seed, ranks
        self.taken = 0  # steps
        self.identity = {"seed": seed, "batch_size": batch_size, **identity}

    def next_indices(self) -> NDArray[np.int64]:
        """Indices of this rank's items of the next step."""
        indices = self._indices(self.taken)
        self.taken += 1
        share = self.batch_size // self.ranks.world_size
        return indices[self.ranks.rank * share : (self.ranks.rank + 1) * share]

    def first_index(self, step: int) -> int:
        """Index of the first item of step `step`, from 1."""
        return int(self._indices(step - 1)[0])

    def _indices(self, step: int) -> NDArray[np.int64]:
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        return endless_order(positions, self.n_items, self.seed)[0]

    def state_dict(self) -> dict[str, Any]:
        """Position of the stream, and the settings that must be equal to resume it."""
        return {"taken": self.taken, **self.identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the stream from `state`.

        Raises:
            InputError: if the data or another setting of `identity` differs.
        """
        check_identity(state, self.identity)
        self.taken = state["taken"]
