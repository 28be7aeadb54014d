"""Watching a training: log.jsonl, TensorBoard, a progress bar, and on request Weights & Biases and a profiler's trace.

`log.jsonl` has one object per line. A step's row: step, loss (of that step, in nats per target), lr, grad_norm (before
clipping), clipped (steps since the last row whose gradient was clipped), ms_per_step, targets_per_s (over all ranks),
mfu (model FLOPs utilisation, 0 to 1, where it is known) and cpu_s (CPU seconds that rank 0 spent training, over all
lives of the run, evaluations and saves left out). An evaluation's row: step and its figures.
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

TRACED = 3  # steps in a profiler's trace
SETTLING = 7  # steps before it: the first ones compile, allocate and choose kernels


class Watch:
    """Everything that a training says about itself; a context manager round the loop.

    Every rank makes one, rank 0 alone writes. A resumed run drops what was logged of steps that it takes again. When
    the block ends well, `out_dir/loss.png` shows the losses.

    Args:
        out_dir: the run's folder, which exists: log.jsonl, tensorboard/, wandb/, trace.json and loss.png go there.
        config: how long the run is, and what else to write; Weights & Biases keeps all of it.
        ranks: who writes, and how many share the work.
        first: steps that were done before.
        flops_per_target: floating-point operations that training takes for one target, see `monitoring.flops`.
        peak_flops: operations a second of one rank's device; with both, MFU is known.
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
        self._seconds_per_target: float | None = None  # what it would take at the devices' peak
        if flops_per_target is not None and peak_flops is not None:
            self._seconds_per_target = flops_per_target / (peak_flops * ranks.world_size)
        self._done = first  # steps
        self._step = first  # the last one with a row
        self._loss = math.nan  # its loss
        self._cpu_s = 0.0  # spent training up to it
        self._profiler: torch.profiler.profile | None = None
        self._board: SummaryWriter | None = None
        self._wandb: wandb.Run | None = None

    def __enter__(self) -> "Watch":
        """Open everything; all ranks together.

        Raises:
            InputError: if Weights & Biases is asked for and missing, or refuses to start.
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
        """Write what step `step` was like.

        Args:
            step: its number, from 1.
            n_targets: how many targets, over all ranks, its loss is the mean of.
            loss: nats per target.
            lr: AdamW's learning rate.
            grad_norm: the gradient's norm before clipping.
            clipped: of how many steps since the last call the gradient was clipped.
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
        if self._seconds_per_target is not None:
            speed["mfu"] = speed["targets_per_s"] * self._seconds_per_target
            shown["MFU"] = f"{speed['mfu']:.0%}"
        self._write(step, row | speed | {"cpu_s": round(self._cpu_s, 3)}, "train")
        self._bar.set_postfix(shown, refresh=False)

    def evaluation(self, step: int, figures: Mapping[str, float]) -> None:
        """Write the figures of an evaluation after step `step`, also to the terminal."""
        if not self._ranks.main:
            return
        self._write(step, figures, "evaluation")
        shown = {} if math.isnan(self._loss) else {"loss": self._loss}
        shown |= {name: value for name, value in figures.items() if not name.endswith("_layer")}
        self.say(f"step {step}: " + ", ".join(f"{name} {_short(value)}" for name, value in shown.items()))
        if self._board is not None:
            self._board.flush()  # a checkpoint follows, and what came before it is not logged again

    def sample(self, step: int, text: str) -> None:
        """Show a text that the model wrote after step `step`."""
        if not self._ranks.main:
            return
        self.say(f"step {step}, a sample: {printable(text)}")
        if self._board is not None:
            literal = "    " + text.replace("\n", "\n    ")  # in Markdown
            self._board.add_text("sample", literal, step)

    def advance(self) -> None:
        """One training step is done."""
        if not self._ranks.main:
            return
        self._done += 1
        self._bar.update()
        if self._profiler is not None:
            self._profiler.step()

    def skip_time(self) -> None:
        """Leave the time since the last row out of the speed and of the CPU seconds."""
        self._time, self._cpu_time = time.perf_counter(), time.process_time()

    def _open(self) -> None:
        config, first = self._config, self._first
        with ExitStack() as closing:
            log = self._out_dir / "log.jsonl"
            self._cpu_s = _rewind(log, first)
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
            print(f"No TensorBoard curves of this training: {error}", file=sys.stderr)
            return None
        threading.excepthook = _report_thread
        # Readers drop what was logged from step purge_step on: a resumed run takes these steps again.
        purge_step = self._first + 1 if self._first else 0
        return closing.enter_context(SummaryWriter(str(self._out_dir / "tensorboard"), purge_step=purge_step))

    def _open_wandb(self, project: str, closing: ExitStack) -> "wandb.Run":
        with extra("wandb"):
            import wandb
        name = self._out_dir.resolve().name
        remembered = self._out_dir / "wandb_id.txt"  # so that a resumed run is the same one there
        if not remembered.exists():
            atomic_write(remembered, re.sub(r"[^A-Za-z0-9_-]", "-", name)[:64] + f"-{secrets.token_hex(4)}\n")
        try:
            run = wandb.init(
                project=project,
                id=remembered.read_text(encoding="utf-8").strip(),
                name=name,
                resume="allow",
                dir=self._out_dir,
                config=dataclasses.asdict(self._config),
                settings=wandb.Settings(console="off"),  # wraps stdout and stderr otherwise
            )
        except wandb.Error as error:
            raise InputError(
                f"Weights & Biases does not start ({' '.join(str(error).split()).rstrip('.')}); run `wandb login`, set "
                "WANDB_MODE=offline, or leave wandb_project out."
            ) from error
        closing.push(lambda kind, error, trace: run.finish(exit_code=0 if kind is None else 1))
        return run

    def _make_profiler(self) -> "torch.profiler.profile":
        os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler's own messages would cross the bar
        from torch.profiler import ProfilerActivity, profile, schedule

        path, first, last = self._out_dir / "trace.json", self._first, self._config.max_iters
        # An evaluation would fill the trace: the traced steps, after `start`, follow one another without any.
        every = self._config.eval_interval
        start = first + SETTLING
        while every > TRACED and any(step % every == 0 for step in range(start, start + TRACED)):
            start += 1
        start = max(first, min(start, last - TRACED))
        warmup = min(1, start - first)

        def write(profiler: profile) -> None:
            profiler.export_chrome_trace(str(path))
            self.say(f"trace of steps {start + 1} to {self._done}: {path}; open it in ui.perfetto.dev")

        activities = [ProfilerActivity.CPU]
        if self._ranks.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        return profile(
            activities=activities,
            schedule=schedule(wait=start - first - warmup, warmup=warmup, active=TRACED, repeat=1),
            on_trace_ready=write,
            record_shapes=True,
        )

    def _write(self, step: int, figures: Mapping[str, float], kind: str) -> None:
        """One row for the log, one point of each curve."""
        row = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        self._log.write(json.dumps({"step": step} | row) + "\n")
        for name, value in figures.items():
            if self._board is not None:
                self._board.add_scalar(f"{kind}/{name}", value, step)
        # What Weights & Biases knows of a life that was cut short, it keeps.
        if self._wandb is not None and step >= self._wandb.step:
            self._wandb.log({f"{kind}/{name}": value for name, value in figures.items()}, step=step)

    def say(self, line: str) -> None:
        """Show a line on the terminal, above the bar."""
        if self._ranks.main:
            tqdm.write(line)
            sys.stdout.flush()


def _report_thread(args: threading.ExceptHookArgs) -> None:
    """What Python does with an error that ends a thread; TensorBoard's, of a full disk, the next call raises anyway."""
    if type(args.thread).__name__ != "_AsyncWriterThread":
        threading.__excepthook__(args)


def _rewind(log: Path, first: int) -> float:
    """Drop the log's rows of steps after `first`, and a torn last line; return the CPU seconds up to `first`."""
    kept, cpu_s = [], 0.0
    for line in log.read_text(encoding="utf-8").splitlines() if first and log.exists() else []:
        try:
            row: dict[str, Any] = json.loads(line)
        except json.JSONDecodeError:  # a kill tore the last line
            break
        if row["step"] > first:
            break
        kept.append(line + "\n")
        cpu_s = row.get("cpu_s", cpu_s)
    atomic_write(log, "".join(kept))
    return cpu_s


def _short(value: float) -> str:
    """A figure for the terminal: four decimals where that says enough and no more, else three digits."""
    if isinstance(value, int):
        return str(value)
    return f"{value:.4f}" if 0.1 <= abs(value) < 1000 else f"{value:.3g}"
