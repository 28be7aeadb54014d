"""Interface of data parallelism: replicated models (one process, DDP) and sharded models (FSDP2; ZeRO-3 in zero3.py).

All implementations of `Parallel` compute the same gradient: that of the sum of losses over all micro-batches of all
ranks, divided by the number of targets.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch.nn as nn
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from gpt_core.common.errors import InputError

LOSS_SCALE = "GradScaler:loss"  # name of float16's loss scale among the optimizer tensors


class Parallel(Protocol):
    """A model with its optimizers, replicated or sharded over the ranks."""

    network: nn.Module
    """The module that the loss function calls."""

    def micro_step(self, last: bool) -> AbstractContextManager[None]:
        """Context of forward and backward; gradients are all-reduced only in the step's last micro-batch."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Backward of a 0-dim sum of losses; gradients accumulate until `update`."""
        ...

    def update(self, n_targets: Tensor, factor: float) -> Tensor:
        """Divide the gradients by the number of targets, clip them, and take an optimizer step.

        Args:
            n_targets: 0-dim, over all micro-batches of all ranks.
            factor: learning rates as a fraction of their peaks.

        Returns:
            0-dim norm of the mean loss's gradient, before clipping.
        """
        ...

    def weights(self) -> dict[str, Tensor]:
        """All unsharded weights on the CPU of rank 0, by name; {} on other ranks. All ranks must call it together."""
        ...

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """Optimizer state, "optimizer:parameter:key" → unsharded CPU tensor, on rank 0; {} on other ranks.

        With float16 it includes the loss scale, under `LOSS_SCALE`. All ranks must call it together.
        """
        ...

    def load_optimizer_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Load the state that `optimizer_tensors` returned; each rank keeps its shard. All ranks must call it together.

        Raises:
            InputError: if it contains parameters or optimizers that this run does not have.
        """
        ...


@contextmanager
def gradient_sync(network: nn.Module, sync: bool) -> Iterator[None]:
    """Context of forward and backward of `network`: whether gradients are all-reduced if there are several ranks."""
    context: AbstractContextManager[None] = nullcontext()
    if isinstance(network, DistributedDataParallel) and not sync:
        context = network.no_sync()
    elif isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(sync)
    with context:
        yield


def by_parameter(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Regroup optimizer state from "optimizer:parameter:key" → tensor to "optimizer:parameter" → key → tensor."""
    saved: dict[str, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        owner, _, key = full.rpartition(":")
        saved.setdefault(owner, {})[key] = tensor
    return saved


def refuse_left_over(saved: dict[str, dict[str, Tensor]]) -> None:
    """Raise if optimizer state of a checkpoint is left that no parameter of this run uses.

    Args:
        saved: "optimizer:parameter" → unused state.

    Raises:
        InputError: naming the first of them, if there are any.
    """
    if saved:
        optimizer, parameter = next(iter(saved)).split(":")
        raise InputError(
            f"The checkpoint holds {optimizer}'s state of {parameter}, which this run does not train with that "
            "optimizer; resume with the same model and optimizer, or choose another out_dir."
        )
