"""How the ranks share a model: each holds all of it (one process, DDP), or a part of it (FSDP2; ZeRO-3 in zero3.py).

Both sides of `Parallel` follow the same gradient: the sum of the losses of all micro-batches on all ranks, over the
number of their targets.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch.nn as nn
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from gpt_core.common.errors import InputError

LOSS_SCALE = "GradScaler:loss"  # among optimizers' state of parameters: what float16 scales the loss with


class Parallel(Protocol):
    """A model, its optimizers, and how ranks share them."""

    network: nn.Module
    """What the loss function calls."""

    def micro_step(self, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of a micro-batch; gradients travel between ranks in the `last` of a step only."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Backward of a 0-dim sum of losses; gradients add up until `update`."""
        ...

    def update(self, n_targets: Tensor, factor: float) -> Tensor:
        """Divide the gradients by the number of targets, clip them, and take an optimizer step.

        Args:
            n_targets: 0-dim, over all micro-batches of all ranks.
            factor: share of the peak learning rates.

        Returns:
            0-dim norm of the gradient of the mean loss, before clipping.
        """
        ...

    def weights(self) -> dict[str, Tensor]:
        """All weights whole, on the CPU, on rank 0; {} on the others. Every rank must call."""
        ...

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """The optimizers' state, "optimizer:parameter:key" → whole tensor on the CPU, on rank 0. Every rank calls.

        In float16 the loss's scale as well, under `LOSS_SCALE`.
        """
        ...

    def load_optimizer_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take over such state; each rank keeps its part. Every rank must call.

        Raises:
            InputError: if it belongs to parameters or optimizers that this run does not have.
        """
        ...


@contextmanager
def gradient_sync(network: nn.Module, travel: bool) -> Iterator[None]:
    """Around forward and backward of `network`: whether gradients travel between ranks, where there are several."""
    quiet: AbstractContextManager[None] = nullcontext()
    if isinstance(network, DistributedDataParallel) and not travel:
        quiet = network.no_sync()
    elif isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(travel)
    with quiet:
        yield


def by_parameter(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Optimizer state, "optimizer:parameter:key" → tensor, as "optimizer:parameter" → key → tensor."""
    saved: dict[str, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        owner, _, key = full.rpartition(":")
        saved.setdefault(owner, {})[key] = tensor
    return saved


def refuse_left_over(saved: dict[str, dict[str, Tensor]]) -> None:
    """Make sure that every tensor of a checkpoint's optimizer state has found its place.

    Args:
        saved: "optimizer:parameter" → what nobody has taken.

    Raises:
        InputError: naming the first.
    """
    if saved:
        optimizer, parameter = next(iter(saved)).split(":")
        raise InputError(
            f"The checkpoint holds {optimizer}'s state of {parameter}, which this run does not train with that "
            "optimizer; resume with the same model and optimizer, or choose another out_dir."
        )
