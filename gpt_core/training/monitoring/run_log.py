"""Logging of a training run: log.jsonl, TensorBoard, a progress bar; optionally Weights & Biases and a profiler trace.

`log.jsonl` has one JSON object per line. Rows of steps: step, loss (of that step, in nats per target), lr, grad_norm
(before clipping), clipped (number of steps since the last row whose gradient was clipped), ms_per_step, targets_per_s
(over all ranks), mfu (model FLOPs utilisation, 0 to 1, if known) and cpu_s (CPU seconds of rank 0 in training, without
evaluations and saves, summed over restarts). Rows of evaluations: step and metrics.
"""

import dataclasses
import json
import math
import os
import re
import secrets
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from gpt_core.common.errors import InputError
from gpt_core.common.extras import extra
from gpt_core.common.files import atomic_write
from gpt_core.common.terminal import printable
from gpt_core.training.config import TrainConfig
from gpt_core.training.monitoring.loss_plot import plot_losses
from gpt_core.training.parallel.ranks import Ranks

if TYPE_CHECKING:
    import torch.profiler
    import wandb
    from torch.utils.tensorboard import SummaryWriter

TRACED_STEPS = 3  # steps in the profiler trace
STEPS_BEFORE_TRACE = 7  # the first steps compile, allocate memory and select kernels


class RunLog:
    """Context manager around the training loop that writes all logs and terminal output.

    Every rank creates one; only rank 0 writes. A resumed run deletes the log rows of steps that it will repeat. When
    the context ends without an exception, `out_dir/loss.png` is drawn.

    Args:
        out_dir: the run's existing folder, for log.jsonl, tensorboard/, wandb/, trace.json and loss.png.
        config: number of steps and optional logs; Weights & Biases records the whole configuration.
        ranks: the processes that train together.
        first: number of steps completed before.
        flops_per_target: floating-point operations of training per target, see `monitoring.flops`.
        peak_flops: FLOP/s of one rank's device; MFU is logged if both are given.
    """

    def __init__(
        self,
        out_dir: Path,
        config: TrainConfig,
        ranks: Ranks,
        first: int,
        *,
        flops_per_target: float | None = None,
        peak_flops: float | None = None,
    ) -> None:
        self._out_dir, self._config, self._ranks, self._first = out_dir, config, ranks, first
        self._flops_per_target, self._peak_flops = flops_per_target, peak_flops
        self._done = first  # completed steps
        self._step = first  # last logged step
        self._loss = math.nan  # loss of the last logged step
        self._cpu_s = 0.0  # CPU seconds of training up to the last logged step
        self._profiler: torch.profiler.profile | None = None
        self._board: SummaryWriter | None = None
        self._wandb: wandb.Run | None = None

    def __enter__(self) -> "RunLog":
        """Open all logs; all ranks must call it together.

        Raises:
            InputError: if Weights & Biases is requested and not installed, or fails to start.
        """
        self._ranks.on_main(self._open)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ranks.main:
            self._closing.__exit__(kind, error, trace)
            if kind is None:
                plot_losses(self._out_dir)

    def step(
        self, step: int, n_targets: int, *, loss: float, lr: float, grad_norm: float, clipped: int
    ) -> None:
        """Log a training step.

        Args:
            step: number of the step, from 1.
            n_targets: number of targets of the step, over all ranks.
            loss: mean loss in nats per target.
            lr: AdamW's learning rate.
            grad_norm: gradient norm before clipping.
            clipped: number of steps since the last call whose gradient was clipped.
        """
        if not self._ranks.main:
            return
        seconds = (time.perf_counter() - self._time) / (step - self._step)
        self._cpu_s += time.process_time() - self._cpu_time
        self._step, self._loss = step, loss
        self.skip_time()
        row = {"loss": loss, "lr": lr, "grad_norm": grad_norm, "clipped": clipped}
        speed = {"ms_per_step": 1000 * seconds, "targets_per_s": n_targets / seconds}
        shown = {"loss": f"{loss:.3f}", "tok/s": tqdm.format_sizeof(speed["targets_per_s"])}
        if self._flops_per_target is not None and self._peak_flops is not None:
            flops = speed["targets_per_s"] * self._flops_per_target / self._ranks.world_size  # of one rank
            # A measured peak is a lower bound: if other processes slowed the measurement down, training may be faster.
            self._peak_flops = max(self._peak_flops, flops)
            speed["mfu"] = flops / self._peak_flops
            shown["MFU"] = f"{speed['mfu']:.0%}"
        self._write(step, row | speed | {"cpu_s": round(self._cpu_s, 3)}, "train")
        self._bar.set_postfix(shown, refresh=False)

    def evaluation(self, step: int, figures: Mapping[str, float]) -> None:
        """Log the metrics of an evaluation after step `step` and print them."""
        if not self._ranks.main:
            return
        self._write(step, figures, "evaluation")
        shown = {} if math.isnan(self._loss) else {"loss": self._loss}
        shown |= {name: value for name, value in figures.items() if not name.endswith("_layer")}
        self.say(f"step {step}: " + ", ".join(f"{name} {_format(value)}" for name, value in shown.items()))
        if self._board is not None:
            self._board.flush()  # a checkpoint follows; a run resumed from it does not log these steps again

    def sample(self, step: int, text: str) -> None:
        """Print and log a text that the model generated after step `step`."""
        if not self._ranks.main:
            return
        self.say(f"step {step}, a sample: {printable(text)}")
        if self._board is not None:
            literal = "    " + text.replace("\n", "\n    ")  # a Markdown code block
            self._board.add_text("sample", literal, step)

    def advance(self) -> None:
        """Count one completed training step."""
        if not self._ranks.main:
            return
        self._done += 1
        self._bar.update()
        if self._profiler is not None:
            self._profiler.step()

    def skip_time(self) -> None:
        """Exclude the time since the last row from the speed and the CPU seconds."""
        self._time, self._cpu_time = time.perf_counter(), time.process_time()

    def _open(self) -> None:
        config, first = self._config, self._first
        with ExitStack() as closing:
            log = self._out_dir / "log.jsonl"
            self._cpu_s = _truncate_log(log, first)
            self._log = closing.enter_context(open(log, "a", buffering=1, encoding="utf-8"))
            self._board = self._open_board(closing)
            if config.wandb_project is not None:
                self._wandb = self._open_wandb(config.wandb_project, closing)
            if config.profile and first < config.max_iters:
                self._profiler = closing.enter_context(self._make_profiler())
            self._bar = closing.enter_context(
                tqdm(total=config.max_iters, initial=first, unit="step", disable=None, dynamic_ncols=True)
            )
            self._closing = closing.pop_all()
        self.skip_time()

    def _open_board(self, closing: ExitStack) -> "SummaryWriter | None":
        try:
            with extra("train"):
                from torch.utils.tensorboard import SummaryWriter
        except InputError as error:
            print(f"No TensorBoard log: {error}", file=sys.stderr)
            return None
        threading.excepthook = _report_thread
        # TensorBoard discards events from step purge_step on, because a resumed run repeats these steps.
        purge_step = self._first + 1 if self._first else 0
        return closing.enter_context(SummaryWriter(str(self._out_dir / "tensorboard"), purge_step=purge_step))

    def _open_wandb(self, project: str, closing: ExitStack) -> "wandb.Run":
        with extra("wandb"):
            import wandb
        name = self._out_dir.resolve().name
        id_file = self._out_dir / "wandb_id.txt"  # so that a resumed run continues the same wandb run
        if not id_file.exists():
            atomic_write(id_file, re.sub(r"[^A-Za-z0-9_-]", "-", name)[:64] + f"-{secrets.token_hex(4)}\n")
        try:
            run = wandb.init(
                project=project,
                id=id_file.read_text(encoding="utf-8").strip(),
                name=name,
                resume="allow",
                dir=self._out_dir,
                config=dataclasses.asdict(self._config),
                settings=wandb.Settings(console="off"),  # by default wandb wraps stdout and stderr
            )
        except wandb.Error as error:
            raise InputError(
                f"Weights & Biases failed to start ({' '.join(str(error).split()).rstrip('.')}); run `wandb login`, "
                "set WANDB_MODE=offline, or omit wandb_project."
            ) from error
        closing.push(lambda kind, error, trace: run.finish(exit_code=0 if kind is None else 1))
        return run

    def _make_profiler(self) -> "torch.profiler.profile":
        os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler's messages would break the progress bar
        from torch.profiler import ProfilerActivity, profile, schedule

        path, first, last = self._out_dir / "trace.json", self._first, self._config.max_iters
        # Trace the steps after `start`, chosen so that no evaluation, which would fill the trace, falls between them.
        every = self._config.eval_interval
        start = first + STEPS_BEFORE_TRACE
        while every > TRACED_STEPS and any(step % every == 0 for step in range(start, start + TRACED_STEPS)):
            start += 1
        start = max(first, min(start, last - TRACED_STEPS))
        warmup = min(1, start - first)

        def write(profiler: profile) -> None:
            profiler.export_chrome_trace(str(path))
            self.say(f"trace of steps {start + 1} to {self._done}: {path}; open it at ui.perfetto.dev")

        activities = [ProfilerActivity.CPU]
        if self._ranks.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        return profile(
            activities=activities,
            schedule=schedule(wait=start - first - warmup, warmup=warmup, active=TRACED_STEPS, repeat=1),
            on_trace_ready=write,
            record_shapes=True,
        )

    def _write(self, step: int, figures: Mapping[str, float], kind: str) -> None:
        """Write one row to log.jsonl and one point to each TensorBoard and wandb curve."""
        row = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        self._log.write(json.dumps({"step": step} | row) + "\n")
        for name, value in figures.items():
            if self._board is not None:
                self._board.add_scalar(f"{kind}/{name}", value, step)
        # wandb cannot delete points: skip the steps that were already logged before a restart.
        if self._wandb is not None and step >= self._wandb.step:
            self._wandb.log({f"{kind}/{name}": value for name, value in figures.items()}, step=step)

    def say(self, line: str) -> None:
        """Print a line above the progress bar."""
        if self._ranks.main:
            tqdm.write(line)
            sys.stdout.flush()


def _report_thread(args: threading.ExceptHookArgs) -> None:
    """Python's excepthook, except for TensorBoard's writer thread: its next call raises the same error (full disk)."""
    if type(args.thread).__name__ != "_AsyncWriterThread":
        threading.__excepthook__(args)


def _truncate_log(log: Path, first: int) -> float:
    """Delete log rows of steps after `first`, and an incomplete last line; return the CPU seconds up to `first`."""
    kept, cpu_s = [], 0.0
    for line in log.read_text(encoding="utf-8").splitlines() if first and log.exists() else []:
        try:
            row: dict[str, Any] = json.loads(line)
        except json.JSONDecodeError:  # a kill left the last line incomplete
            break
        if row["step"] > first:
            break
        kept.append(line + "\n")
        cpu_s = row.get("cpu_s", cpu_s)
    atomic_write(log, "".join(kept))
    return cpu_s


def _format(value: float) -> str:
    """A metric as text: four decimals from 0.1 to 1000, else three significant digits."""
    if isinstance(value, int):
        return str(value)
    return f"{value:.4f}" if 0.1 <= abs(value) < 1000 else f"{value:.3g}"
