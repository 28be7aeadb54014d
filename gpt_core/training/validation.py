"""Next-token loss of a micro-batch, and its mean over a whole split: the validation loss."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn as nn
from torch import Tensor
from tqdm import tqdm

from gpt_core.data.batches import EVAL_TOKENS, IGNORED, Windows
from gpt_core.data.strided_windows import StridedWindows
from gpt_core.hardware.device import Numerics
from gpt_core.training.monitoring.diagnostics import Maxima
from gpt_core.training.parallel.ranks import ALONE, Ranks


def next_token_loss(model: nn.Module, micro_batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropy over a micro-batch's targets, and the number of targets."""
    ids, targets = micro_batch
    out = model(ids, targets=targets, logits=False)
    return out.loss_sum, out.n_targets


def split_loss(
    model: nn.Module,
    windows: Windows | StridedWindows,
    numerics: Numerics,
    ranks: Ranks = ALONE,
    progress: bool = False,
    eval_tokens: int = 0,
) -> tuple[float, int]:
    """Mean cross-entropy in nats over the targets of `windows`, and the number of targets.

    Args:
        model: a GPT in evaluation mode.
        windows: a split of token shards.
        numerics: the dtype of the matrix products.
        ranks: the processes, among which the windows are divided.
        progress: show a progress bar.
        eval_tokens: evaluate only as many windows as hold at most this many targets, at least one, evenly spread over
            the split, the first and the last among them; 0: all.
    """
    n = len(windows)
    if eval_tokens:
        n = min(n, max(1, eval_tokens // windows.block_size))
    chosen = np.linspace(0, len(windows) - 1, n).round().astype(np.int64)  # (n,), increasing
    loss_sum, n_targets = 0.0, 0
    size = max(1, EVAL_TOKENS // windows.block_size)  # windows per forward
    # All ranks run the same number of forwards: every forward of a sharded model needs all ranks.
    steps = range(0, n, size * ranks.world_size)
    for first in tqdm(steps, "evaluating", leave=False, disable=None if progress else True):
        start = min(first + ranks.rank * size, n - 1)
        ids, targets = windows.rows(chosen[start : start + size])  # (size, T) each
        if first + ranks.rank * size > start:
            targets = torch.full_like(targets, IGNORED)
        with torch.no_grad(), numerics.autocast():
            loss, count = next_token_loss(model, (ids.to(ranks.device), targets.to(ranks.device)))
        loss_sum, n_targets = loss_sum + loss.item(), n_targets + int(count)
    total, count = ranks.sum(torch.tensor([loss_sum, n_targets], dtype=torch.float64)).tolist()
    return total / count, int(count)


def evaluator(
    windows: Windows, ranks: Ranks = ALONE, numerics: Numerics | None = None, eval_tokens: int = 0
) -> Callable[[nn.Module], dict[str, float]]:
    """Create the `evaluate` function of the training loop: `split_loss` of `windows` as "val_loss".

    It also returns the figures of `Maxima`, from rank 0's forward of the first window.

    Args:
        windows: the validation split.
        ranks: the processes, among which the windows are divided.
        numerics: dtype; None: float32.
        eval_tokens: as for `split_loss`.
    """
    numerics = numerics or Numerics(ranks.device.type)

    def evaluate(model: nn.Module) -> dict[str, float]:
        with Maxima(model) as maxima, numerics.autocast():
            model(windows.rows([0])[0].to(ranks.device), logits=False)
        loss, _ = split_loss(model, windows, numerics, ranks, eval_tokens=eval_tokens)
        return {"val_loss": loss} | maxima.figures()

    return evaluate
