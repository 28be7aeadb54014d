"""The log of a training run: rows, TensorBoard curves, progress bar, trace and loss plot; also over restarts."""

import io
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from gpt_core.common.errors import InputError
from gpt_core.training.config import TrainConfig
from gpt_core.training.monitoring.run_log import RunLog
from gpt_core.training.parallel.ranks import Ranks

T = TypeVar("T")


def run_log(out_dir: Path, first: int = 0, ranks: Ranks | None = None, **keys: Any) -> RunLog:
    rates = {name: keys.pop(name) for name in ("flops_per_target", "peak_flops") if name in keys}
    config = TrainConfig(**({"out_dir": str(out_dir), "max_iters": 8, "warmup_iters": 1} | keys))
    return RunLog(out_dir, config, ranks or Ranks(), first, **rates)


def live(log: RunLog, steps: range, evaluate_at: tuple[int, ...] = ()) -> None:
    """Log steps and evaluations as the training loop does."""
    for step in steps:
        log.advance()
        log.step(step, 100, loss=4.0 / step, lr=0.1, grad_norm=1.0, clipped=step % 2)
        if step in evaluate_at:
            log.evaluation(step, {"val_loss": 5.0 / step})
            log.skip_time()


def rows(out_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out_dir / "log.jsonl").read_text().splitlines()]


def curves(out_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """The scalars of the TensorBoard log: (step, value) pairs of each tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out_dir / "tensorboard")).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_a_run_faster_than_the_measured_peak_has_an_mfu_of_one(tmp_path: Path) -> None:
    with run_log(tmp_path, flops_per_target=1e12, peak_flops=1.0) as log:
        time.sleep(0.01)
        log.step(1, 100, loss=2.0, lr=0.1, grad_norm=1.0, clipped=0)
        time.sleep(0.1)
        log.step(2, 100, loss=2.0, lr=0.1, grad_norm=1.0, clipped=0)
    first, second = rows(tmp_path)
    assert first["mfu"] == 1
    fastest = max(first["targets_per_s"], second["targets_per_s"])
    assert second["mfu"] == pytest.approx(second["targets_per_s"] / fastest)


def test_a_step_is_in_the_log_the_curves_and_the_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with run_log(tmp_path, first=4, flops_per_target=1e6, peak_flops=1e10) as log:
        time.sleep(0.05)
        log.step(5, 100, loss=2.0, lr=0.1, grad_norm=1.0, clipped=0)
        live(log, range(6, 9), evaluate_at=(8,))
    first, *_, evaluation = rows(tmp_path)
    assert list(first) == [
        "step", "loss", "lr", "grad_norm", "clipped", "ms_per_step", "targets_per_s", "mfu", "cpu_s"
    ]  # fmt: skip
    assert 50 <= first["ms_per_step"] < 500
    assert first["targets_per_s"] == pytest.approx(100 / first["ms_per_step"] * 1000)
    assert first["mfu"] == pytest.approx(first["targets_per_s"] * 1e6 / 1e10)
    assert first["cpu_s"] < 0.04  # sleeping takes no CPU time
    assert evaluation == {"step": 8, "val_loss": 0.625}
    drawn = curves(tmp_path)
    assert drawn["train/loss"] == [(5, 2.0), *((s, pytest.approx(4.0 / s)) for s in range(6, 9))]
    assert drawn["train/clipped"] == [(5, 0), (6, 0), (7, 1), (8, 0)]
    assert drawn["evaluation/val_loss"] == [(8, 0.625)]
    assert "step 8: loss 0.5000, val_loss 0.6250\n" in capsys.readouterr().out
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_resumed_run_removes_the_rows_of_repeated_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.summary.writer import event_file_writer as files

    # A real restart is a new process, which numbers its event files from 0. In one process the numbers would go on, and
    # TensorBoard would read file 10 before file 9 of the same second.
    monkeypatch.setattr(files, "_global_uid", files.AtomicCounter(0))

    def killed() -> None:
        with run_log(tmp_path) as log:
            live(log, range(1, 7), evaluate_at=(2, 4))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    assert not (tmp_path / "loss.png").exists()
    with open(tmp_path / "log.jsonl", "a") as f:
        f.write('{"step": 7, "lo')  # a kill leaves a partial line
    with run_log(tmp_path, first=4) as log:
        live(log, range(5, 9), evaluate_at=(6, 8))
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 2, 3, 4, 4, 5, 6, 6, 7, 8, 8]
    cpu_s = [row["cpu_s"] for row in rows(tmp_path) if "loss" in row]
    assert cpu_s == sorted(cpu_s)
    drawn = curves(tmp_path)
    assert [step for step, _ in drawn["train/loss"]] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [step for step, _ in drawn["evaluation/val_loss"]] == [2, 4, 6, 8]

    picture = (tmp_path / "loss.png").read_bytes()
    with run_log(tmp_path, first=8):
        pass
    assert (tmp_path / "loss.png").read_bytes() == picture
    with run_log(tmp_path):  # a run without a checkpoint starts again from an empty log
        pass
    assert rows(tmp_path) == []
    assert not any(curves(tmp_path).values())


def test_evaluations_and_saves_cost_no_training_time(tmp_path: Path) -> None:
    def burn(seconds: float) -> None:
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    taken: list[float] = []

    def one_step(log: RunLog, step: int) -> None:
        start = time.perf_counter()
        burn(0.05)
        taken.append(1000 * (time.perf_counter() - start))
        log.step(step, 100, loss=1.0, lr=0.1, grad_norm=1.0, clipped=0)
        burn(0.2)  # an evaluation
        log.skip_time()

    for first in (0, 2):
        with run_log(tmp_path, first) as log:
            for step in (first + 1, first + 2):
                one_step(log, step)
    found = rows(tmp_path)
    assert [row["cpu_s"] for row in found] == pytest.approx([0.05, 0.1, 0.15, 0.2], abs=0.04)
    assert [row["ms_per_step"] for row in found] == pytest.approx(taken, abs=100)


def test_values_that_are_not_finite_are_json_null(tmp_path: Path) -> None:
    with run_log(tmp_path) as log:
        log.step(1, 1, loss=1.0, lr=0.1, grad_norm=math.inf, clipped=1)
        log.evaluation(1, {"val_loss": math.nan})
    assert "null" in (tmp_path / "log.jsonl").read_text()
    assert not {"NaN", "Infinity"} & set((tmp_path / "log.jsonl").read_text().replace(",", " ").split())


def test_other_ranks_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Second(Ranks):
        def on_main(self, function: Callable[[], T]) -> T:
            return None  # type: ignore[return-value]

    with run_log(tmp_path, ranks=Second(rank=1, world_size=2), profile=True) as log:
        live(log, range(1, 9), evaluate_at=(8,))
        log.sample(8, "text")
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr() == ("", "")


def test_control_characters_of_samples_do_not_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with run_log(tmp_path) as log:
        log.sample(3, "To be\n# or\x1b[2J not")
    assert capsys.readouterr().out == "step 3, a sample: To be\n# or\ufffd[2J not\n"
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (event,) = events.Tensors("sample/text_summary")
    assert (event.step, event.tensor_proto.string_val[0]) == (3, b"    To be\n    # or\x1b[2J not")


def test_the_progress_bar_continues_at_the_resumed_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with run_log(tmp_path, first=4, flops_per_target=1.0, peak_flops=1.0) as log:
        live(log, range(5, 9))
    first, *_, last = terminal.getvalue().split("\r")[1:]
    assert "| 4/8 [" in first
    assert "| 8/8 [" in last
    assert "loss=0.5" in last
    assert "tok/s=" in last
    assert "MFU=" in last


def test_a_trace_covers_steps_between_evaluations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with run_log(tmp_path, profile=True, max_iters=20, eval_interval=8) as log:
        for step in range(1, 21):
            with torch.profiler.record_function(f"step {step}"):
                pass
            log.advance()
            if step % 8 == 0:
                with torch.profiler.record_function("evaluation"):
                    pass
    names = {event["name"] for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]}
    assert {name for name in names if name.startswith(("step ", "eval"))} == {"step 10", "step 11", "step 12"}
    assert f"trace of steps 10 to 12: {tmp_path / 'trace.json'}" in capsys.readouterr().out


def test_a_short_run_has_a_short_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with run_log(tmp_path, profile=True, max_iters=4) as log:
        log.advance()
        log.advance()  # and stops early
    assert "trace of steps 2 to 2: " in capsys.readouterr().out
    assert (tmp_path / "trace.json").exists()


def test_training_runs_without_tensorboard_and_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("torch.utils.tensorboard", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    with run_log(tmp_path) as log:
        live(log, range(1, 3), evaluate_at=(2,))
        log.sample(2, "text")
    assert len(rows(tmp_path)) == 3
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "No TensorBoard log",
        "No loss plot",
    ]
    assert all("zhizhi[train]" in line for line in lines)


def test_a_missing_wandb_package_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"wandb is not installed.*zhizhi\[wandb\]"):
        run_log(tmp_path, wandb_project="p").__enter__()
    assert not (tmp_path / "wandb_id.txt").exists()


def test_a_restart_continues_the_same_wandb_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    out_dir = tmp_path / "a run"
    out_dir.mkdir()
    child = os.fork()
    if child == 0:  # a child process, because wandb leaves threads running
        status = 1
        try:
            with run_log(out_dir, wandb_project="p") as log:
                live(log, range(1, 5), evaluate_at=(4,))
            with run_log(out_dir, first=4, wandb_project="p") as log:
                live(log, range(5, 9), evaluate_at=(8,))
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    identity = (out_dir / "wandb_id.txt").read_text().strip()
    assert identity.startswith("a-run-")
    files = list((out_dir / "wandb").glob("offline-run-*/run-*.wandb"))
    assert {path.name for path in files} == {f"run-{identity}.wandb"}
