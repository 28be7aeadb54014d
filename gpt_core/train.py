"""The one training loop. Pretraining, fine-tuning and embedding training differ in what they hand to it."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

import torch
import torch.nn as nn
from torch import Tensor
from tqdm import tqdm

from gpt_core import checkpoint
from gpt_core.errors import InputError
from gpt_core.files import atomic_write
from gpt_core.interrupt import StopSignal
from gpt_core.optim import build_optimizers, cosine, set_learning_rates


@dataclass(frozen=True)
class TrainConfig:
    """What every kind of training is told; the names are nanoGPT's where it has one."""

    out_dir: str = "runs/out"
    """Folder of the run: checkpoints and log.jsonl. What is in it already is resumed."""
    max_iters: int = 2000
    """Steps to train for."""
    eval_interval: int = 250
    """Evaluate and save a checkpoint every so many steps, and at the last one."""
    log_interval: int = 10
    """Write a line of log.jsonl every so many steps."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints to keep, beside the best."""
    seed: int = 1337
    """Of the initial weights, the data order and dropout."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """muon: Muon for the matrices of the blocks, AdamW for the rest; adamw: AdamW for all."""
    learning_rate: float = 3e-3
    """AdamW's peak rate."""
    muon_learning_rate: float = 0.02
    """Muon's peak rate."""
    min_lr: float | None = None
    """AdamW's final rate (Muon's falls in proportion); None: a tenth of learning_rate."""
    warmup_iters: int = 100
    """Steps over which the rates rise from zero."""
    lr_decay_iters: int | None = None
    """The step at which the cosine reaches min_lr; None: max_iters."""
    weight_decay: float = 0.1
    """AdamW's, on what has two dimensions or more."""
    muon_weight_decay: float = 0.01
    """Muon's."""
    beta1: float = 0.9
    """AdamW's decay of the mean gradient."""
    beta2: float = 0.99
    """AdamW's decay of the mean squared gradient."""
    grad_clip: float = 1.0
    """Longest gradient, as its norm over all parameters; 0: not clipped."""

    def __post_init__(self) -> None:
        for name in ("max_iters", "eval_interval", "log_interval", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1.")
        for name in ("learning_rate", "muon_learning_rate"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)}; expected more than 0.")
        for name in ("warmup_iters", "weight_decay", "muon_weight_decay", "grad_clip"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 0.")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise InputError(f"beta1, beta2 are {self.beta1}, {self.beta2}; expected numbers in [0, 1).")
        if not self.warmup_iters < self.decay_iters:
            raise InputError(
                f"warmup_iters is {self.warmup_iters}; it must be below lr_decay_iters, which is {self.decay_iters}."
            )
        if self.min_lr is not None and not 0 <= self.min_lr <= self.learning_rate:
            raise InputError(
                f"min_lr is {self.min_lr}; expected 0 to learning_rate, which is {self.learning_rate}."
            )

    @property
    def decay_iters(self) -> int:
        """`lr_decay_iters`, or its default."""
        return self.max_iters if self.lr_decay_iters is None else self.lr_decay_iters

    @property
    def lr_floor(self) -> float:
        """The final learning rate as a share of the peak."""
        return 0.1 if self.min_lr is None else self.min_lr / self.learning_rate


class TrainBatches(checkpoint.Stateful, Protocol):
    """An endless stream of steps; one item is the list of micro-batches of one step."""

    def __next__(self) -> list[Any]:
        """The micro-batches of the next step."""
        ...


def train(
    model: nn.Module,
    batches: TrainBatches,
    loss_function: Callable[[nn.Module, Any], tuple[Tensor, Tensor | int]],
    evaluate: Callable[[nn.Module], dict[str, float]],
    config: TrainConfig,
    *,
    save_model: Callable[[Path], None],
    resume: Path | None = None,
) -> dict[str, float]:
    """Train `model` for `config.max_iters` steps, with checkpoints in `config.out_dir`.

    A step follows the gradient of (sum of all losses) / (number of all targets), so it does not depend on how the
    batch is cut into micro-batches nor on how many targets each one holds.

    Args:
        model: on its device, with the weights of `resume` if that is given.
        batches: where micro-batches come from; it knows its position.
        loss_function: `(model, micro_batch)` → (0-dim sum of losses, how many they are). It may run backward itself,
            on that sum, and return it without a graph, as a loss over more than fits in memory must (GradCache).
        evaluate: figures of the model, which is in evaluation mode and without gradients; "val_loss", the lower the
            better, chooses the best checkpoint.
        config: everything else.
        save_model: writes a model folder that is usable alone into an existing folder.
        resume: checkpoint whose optimizer state, data position and random states to go on from.

    Returns:
        The figures of the last evaluation.

    Raises:
        InputError: if the loss stops being a finite number; the last checkpoint stays.
        KeyboardInterrupt: after Ctrl-C, when the step is finished and saved. SIGTERM exits with 143 likewise.
    """
    optimizers = build_optimizers(
        model,
        learning_rate=config.learning_rate,
        muon_learning_rate=config.muon_learning_rate if config.optimizer == "muon" else None,
        weight_decay=config.weight_decay,
        muon_weight_decay=config.muon_weight_decay,
        beta1=config.beta1,
        beta2=config.beta2,
    )
    first: int = 0
    figures: dict[str, float] = {}
    if resume is not None:
        first, figures = checkpoint.restore(resume, model=model, optimizers=optimizers, batches=batches)
    out_dir = Path(config.out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    checkpoint.clear_leftovers(out_dir, first)
    parameters = [p for p in model.parameters() if p.requires_grad]
    model.train()

    log = Log(out_dir / "log.jsonl", first)
    bar = tqdm(total=config.max_iters, initial=first, unit="step", disable=None, dynamic_ncols=True)
    with log, bar, StopSignal() as stop:
        for step in range(first + 1, config.max_iters + 1):
            factor = cosine(step - 1, config.warmup_iters, config.decay_iters, config.lr_floor)
            set_learning_rates(optimizers, factor)

            loss_sum: Tensor | float = 0.0
            n_targets: Tensor | int = 0
            for micro_batch in next(batches):
                loss, count = loss_function(model, micro_batch)
                if loss.requires_grad:
                    loss.backward()
                loss_sum = loss_sum + loss.detach()
                n_targets = n_targets + count

            for p in parameters:
                if p.grad is not None:
                    p.grad.div_(n_targets)
            norm = nn.utils.clip_grad_norm_(parameters, config.grad_clip or math.inf)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            bar.update()

            evaluating = step % config.eval_interval == 0 or step == config.max_iters
            stopping = stop.asked is not None  # looked at once: a signal from here on is for the next step
            saving = evaluating or stopping
            if saving or step % config.log_interval == 0:
                loss_mean, grad_norm = float(loss_sum / n_targets), norm.item()
                if not (math.isfinite(loss_mean) and math.isfinite(grad_norm)):
                    raise InputError(
                        f"The loss is {loss_mean} and the gradient's norm {grad_norm} at step {step}: training stops, "
                        f"the checkpoints in {out_dir} are untouched. Lower learning_rate and run again."
                    )
                lr = factor * config.learning_rate
                log.step(step, int(n_targets), loss=loss_mean, lr=lr, grad_norm=grad_norm)
                bar.set_postfix(loss=f"{loss_mean:.3f}", refresh=False)
            if saving:
                figures = {}
                if evaluating:
                    model.eval()
                    with torch.no_grad():
                        figures = evaluate(model)
                    model.train()
                    log.evaluation(step, figures)
                checkpoint.save(
                    out_dir,
                    step,
                    save_model=save_model,
                    model=model,
                    optimizers=optimizers,
                    batches=batches,
                    figures=figures,
                )
                checkpoint.prune(out_dir, config.keep_checkpoints)
                log.skip_time()
            if stopping:
                break
        stop.act()
    return figures


class Log:
    """`log.jsonl`: one object per line, either of a step (loss, lr, grad_norm, speed) or of an evaluation.

    Args:
        path: the file; lines of steps after `first`, which a resumed run takes again, are dropped.
        first: steps that were done before.
    """

    def __init__(self, path: Path, first: int) -> None:
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # a kill tore the last line
                break
            if row["step"] > first:
                break
            kept.append(line + "\n")
        atomic_write(path, "".join(kept))
        self._file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 - closed by __exit__
        self._step, self._time = first, time.perf_counter()  # since when the speed counts
        self._loss = math.nan

    def __enter__(self) -> "Log":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def step(self, step: int, n_targets: int, *, loss: float, lr: float, grad_norm: float) -> None:
        """Write what step `step` was like; n_targets is how many losses its mean is over."""
        seconds = (time.perf_counter() - self._time) / (step - self._step)
        speed = {"ms_per_step": 1000 * seconds, "targets_per_s": n_targets / seconds}
        self._write({"step": step, "loss": loss, "lr": lr, "grad_norm": grad_norm} | speed)
        self._step, self._time, self._loss = step, time.perf_counter(), loss

    def evaluation(self, step: int, figures: dict[str, float]) -> None:
        """Write the figures of an evaluation, also to the terminal."""
        self._write({"step": step} | figures)
        shown = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
        tqdm.write(f"step {step}: loss {self._loss:.4f}, {shown}")

    def skip_time(self) -> None:
        """Leave the time since the last step out of the speed."""
        self._time = time.perf_counter()

    def _write(self, row: dict[str, float]) -> None:
        self._file.write(json.dumps(row) + "\n")
