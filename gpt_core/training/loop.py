"""The one training loop. Pretraining, fine-tuning and embedding training differ in what they hand to it."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn as nn
from torch import Tensor

from gpt_core.common.errors import InputError
from gpt_core.common.signals import StopSignal, act
from gpt_core.hardware.device import Numerics
from gpt_core.hub import run_folder
from gpt_core.training import checkpoint
from gpt_core.training.config import TrainConfig
from gpt_core.training.monitoring.diagnostics import update_to_weight
from gpt_core.training.monitoring.flops import peak_flops
from gpt_core.training.monitoring.run_log import Watch
from gpt_core.training.optim import learning_rate_factor
from gpt_core.training.parallel.parallel import Parallel
from gpt_core.training.parallel.ranks import ALONE, Ranks
from gpt_core.training.parallel.torch_parallel import TorchParallel, try_compiled

LossFunction = Callable[[nn.Module, Any], tuple[Tensor, Tensor | int]]

SEED_STRIDE = 1_000_003  # steps and ranks get seeds of their own from the run's


class TrainBatches(checkpoint.Stateful, Protocol):
    """An endless stream of steps; one item is the list of this rank's micro-batches of one step."""

    def __next__(self) -> list[Any]:
        """The micro-batches of the next step."""
        ...

    def describe(self, step: int) -> str:
        """What the batch of step `step`, from 1, was made of, for a message."""
        ...


def train(
    model: nn.Module,
    batches: TrainBatches,
    loss_function: LossFunction,
    evaluate: Callable[[nn.Module], dict[str, float]],
    config: TrainConfig,
    *,
    save_model: Callable[[Path, dict[str, Tensor]], None],
    resume: Path | None = None,
    ranks: Ranks = ALONE,
    numerics: Numerics | None = None,
    sample: Callable[[nn.Module], str] | None = None,
    flops_per_target: float | None = None,
) -> dict[str, float]:
    """Train `model` for `config.max_iters` steps, with checkpoints in `config.out_dir`.

    A step follows the gradient of (sum of all losses) / (number of all targets), so it does not depend on how the
    batch is cut into micro-batches and shared by ranks, nor on how many targets each one holds.

    Args:
        model: on its device, with the weights of `resume` if that is given; the same on every rank.
        batches: where micro-batches come from; it knows its position.
        loss_function: `(model, micro_batch)` → (0-dim sum of losses, how many they are). It may run backward itself,
            on that sum, and return it without a graph, as a loss over more than fits in memory must (GradCache).
        evaluate: figures of the model, which is in evaluation mode and without gradients, over all ranks; "val_loss",
            the lower the better, chooses the best checkpoint.
        config: everything else.
        save_model: writes a model folder that is usable alone into an existing folder, from all weights by name.
        resume: checkpoint whose optimizer state and data position to go on from.
        ranks: the processes that train together.
        numerics: number format, threads, compilation; None: float32, uncompiled.
        sample: text of the model, which is in evaluation mode, to be shown at each evaluation.
        flops_per_target: floating-point operations of a training step per target, for the utilisation (MFU).

    Returns:
        The figures of the last evaluation.

    Raises:
        InputError: if the loss stops being a finite number; the last checkpoint stays.
        KeyboardInterrupt: after Ctrl-C, when the step is finished and saved. SIGTERM exits with 143 likewise.
    """
    numerics = numerics or Numerics(ranks.device.type, threads=torch.get_num_threads())
    parallel = make_parallel(model, config, ranks, numerics)
    first, figures = 0, dict[str, float]()
    best: dict[str, float] = {"evaluations_since": 0}
    if resume is not None:
        state = checkpoint.restore(resume, parallel, batches)
        first, figures, best = state["step"], state["figures"], state["best"]
    out_dir = Path(config.out_dir)
    ranks.on_main(lambda: run_folder.prepare(out_dir, first))
    model.train()
    if numerics.compile:
        try_compiled(model, lambda: rehearse(parallel, batches, loss_function), ranks)

    peak = None
    if flops_per_target is not None:
        peak = ranks.on_main(lambda: peak_flops(ranks.device, numerics.torch_dtype))
    watch = Watch(out_dir, config, ranks, first, flops_per_target=flops_per_target, peak_flops=peak)
    n_clipped = first_bad = torch.zeros((), device=ranks.device)
    stopping = 0
    with watch, StopSignal() as stop:
        if first >= config.max_iters:
            watch.say(f"nothing to do: step {first} of {config.max_iters} is done; go on with more max_iters")
        for step in range(first + 1, config.max_iters + 1):
            if stopping:
                break
            if 0 < config.patience <= best["evaluations_since"]:
                watch.say(
                    f"stopped early: the last {best['evaluations_since']} evaluations had no lower val_loss than "
                    f"{best['val_loss']:.4f}; go on with a higher patience"
                )
                break
            # Dropout's seed; with one for each step and rank there is no random state to be saved.
            torch.manual_seed((config.seed + step) * SEED_STRIDE + ranks.rank)

            loss_sum = n_targets = torch.zeros((), device=ranks.device)
            micro_batches = next(batches)
            for i, micro_batch in enumerate(micro_batches, 1):
                with parallel.micro_step(last=i == len(micro_batches)):
                    loss, count = loss_function(parallel.network, micro_batch)
                    if loss.requires_grad:
                        parallel.backward(loss)
                loss_sum, n_targets = loss_sum + loss.detach(), n_targets + count
            loss_sum, n_targets = ranks.sum(torch.stack((loss_sum, n_targets.type_as(loss_sum))))

            evaluating = step % config.eval_interval == 0 or step == config.max_iters
            before = {}
            if evaluating and config.parallel != "deepspeed":  # whose parameters are empty between forwards
                before = {name: p.detach().clone() for name, p in model.named_parameters()}
            factor = learning_rate_factor(config, step - 1)
            grad_norm = parallel.update(n_targets, factor)
            watch.advance()

            # Figures stay on the device until they are shown: asking for one makes the CPU wait for the GPU.
            loss_mean = loss_sum / n_targets
            bad = ~(loss_mean if numerics.dtype == "float16" else loss_mean + grad_norm).isfinite()
            first_bad = torch.where((first_bad == 0) & bad, step, first_bad)
            n_clipped = n_clipped + (grad_norm > (config.grad_clip or math.inf))
            stopping = ranks.max(stop.asked)  # the ranks agree; a signal from here on is for the next step
            saving = evaluating or stopping > 0
            if saving or step % config.log_interval == 0:
                if first_bad:
                    raise InputError(not_finite(batches, int(first_bad), step, float(loss_mean), out_dir))
                watch.step(
                    step,
                    int(n_targets),
                    loss=float(loss_mean),
                    lr=factor * config.learning_rate,
                    grad_norm=float(grad_norm),
                    clipped=int(n_clipped),
                )
                n_clipped = torch.zeros_like(n_clipped)
            if not saving:
                continue

            figures = {}
            if evaluating:
                ratios = update_to_weight(before, dict(model.named_parameters()))
                model.eval()
                # Evaluation has other shapes, which are not worth compiling for.
                with torch.no_grad(), torch.compiler.set_stance("force_eager"):
                    figures = evaluate(model) | ratios
                    text = sample(model) if sample is not None else None
                model.train()
                if math.isnan(figures["val_loss"]):
                    raise InputError(not_finite(batches, step, step, figures["val_loss"], out_dir))
                if figures["val_loss"] < best.get("val_loss", math.inf):
                    best = {"val_loss": figures["val_loss"], "evaluations_since": 0}
                else:
                    best = best | {"evaluations_since": best["evaluations_since"] + 1}
                watch.evaluation(step, figures)
                if text is not None:
                    watch.sample(step, text)
            checkpoint.save(
                out_dir, step, save_model=save_model, parallel=parallel, batches=batches, figures=figures, best=best,
                numerics=numerics, ranks=ranks,
            )  # fmt: skip
            ranks.on_main(lambda: run_folder.prune(out_dir, config.keep_checkpoints))
            watch.skip_time()
        act(stopping)
    return figures


def rehearse(parallel: Parallel, batches: TrainBatches, loss_function: LossFunction) -> None:
    """Forward and backward of the next micro-batch, which stays the next one."""
    place = batches.state_dict()
    micro_batch = next(batches)[0]
    batches.load_state_dict(place)
    with parallel.micro_step(last=True):
        loss, _ = loss_function(parallel.network, micro_batch)
        if loss.requires_grad:
            parallel.backward(loss)


def not_finite(batches: TrainBatches, bad: int, step: int, loss: float, out_dir: Path) -> str:
    """What to say when the loss or the gradient stops being a number."""
    found = f" (noticed at step {step})" if step > bad else ""
    return (
        f"The loss or its gradient is not a finite number at step {bad}{found}, whose batch is "
        f"{batches.describe(bad)}; the loss is {loss} now. Training stops, and the checkpoints in {out_dir} are "
        "untouched: lower the learning rate, or look at that text, and run again."
    )


def make_parallel(model: nn.Module, config: TrainConfig, ranks: Ranks, numerics: Numerics) -> Parallel:
    """The way of sharing that `config` names.

    Raises:
        InputError: for one that this way of starting, or this number format, does not allow.
    """
    if config.parallel == "deepspeed":
        from gpt_core.training.parallel.zero3 import ZeRO3

        return ZeRO3(model, config, ranks, numerics)
    return TorchParallel(model, config, ranks, numerics)
