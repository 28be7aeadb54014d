"""The dry run's estimates of memory and time: as a command, and value by value."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gpt_core.common.errors import InputError
from gpt_core.data.prepare_data import prepare_data
from gpt_core.hardware.device import Numerics, wall_seconds
from gpt_core.model.gpt import GPT
from gpt_core.tokenizer.tokenizer import Tokenizer
from gpt_core.training.pretraining.config import PretrainConfig
from gpt_core.training.pretraining.dry_run import dry_run
from gpt_core.training.pretraining.measure_step import Step, activation_bytes, measure_memory, measure_speed
from tests import commands

TINY = PretrainConfig(
    n_layer=3, n_head=2, n_embd=32, block_size=16, batch_size=12, micro_batch_size=3, vocab_multiple=1,
    expected_vocab_size=50, max_iters=10, warmup_iters=1, dtype="float32", threads=1, device="cpu", dry_run=True,
)  # fmt: skip
CPU, FLOAT32 = torch.device("cpu"), Numerics()


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("preset", "keys", "expected"),
    [
        ("smoke", [], ["111,104 parameters", "measured on 16 random sequences", "leave them idle"]),
        pytest.param(
            *("gpt2-124m", ["--block_size", "16"], ["40 micro-batches of 12", "on 8× H100 at 40%", "Chinchilla's 20"]),
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_a_dry_run_without_data_prints_estimates_and_writes_nothing(
    preset: str, keys: list[str], expected: list[str], tmp_path: Path
) -> None:
    root = Path.cwd()
    command = [root / "scripts/pretrain.py", "--config", root / f"configs/{preset}.yaml", "--dry_run", *keys]
    done = commands.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert (done.returncode, done.stderr) == (0, "")
    for part in [*expected, "tokens/s here", "assumed, there is no tokenizer yet", "none in data/"]:
        assert part in done.stdout
    assert len(done.stdout.splitlines()) < 20
    assert not any(tmp_path.iterdir())


def test_the_figures_follow_from_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("To know what you know.\n" * 100)
    prepare_data(input=[str(tmp_path / "a.txt")], tokenizer="char", out=str(tmp_path / "data"))
    before = sorted(tmp_path.rglob("*"))
    config = replace(TINY, data_dir=str(tmp_path / "data"), out_dir=str(tmp_path / "run"))
    figures = dry_run(config)
    vocab_size = Tokenizer.from_pretrained(tmp_path / "data").vocab_size
    model = GPT(config.gpt_config(Tokenizer.from_pretrained(tmp_path / "data")))
    n_parameters = sum(p.numel() for p in model.parameters())
    assert figures["parameters"] == n_parameters
    assert figures["tokens_per_parameter"] == pytest.approx(10 * 12 * 16 / n_parameters)
    assert figures["hours"] * 3600 > 10 * 12 * 16 / figures["tokens_per_s"] > 0  # hours include evaluations
    text = capsys.readouterr().out
    assert f"vocabulary {vocab_size} (of {tmp_path / 'data'})" in text
    assert "1 rank with 4 micro-batches of 3" in text
    assert "2,069 tokens" in text  # 90 % of 2,300 characters; the first one is not a target
    assert f"{10 * 12 * 16 / 2069:.2f} epochs" in text
    assert sorted(tmp_path.rglob("*")) == before

    grown = dry_run(replace(config, batch_size_start=6, batch_ramp_iters=4))
    assert grown["tokens_per_parameter"] == pytest.approx((10 * 12 - 4 * 3) * 16 / n_parameters)


def test_a_dry_run_raises_the_errors_of_training(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"batch_size is 13; it must be a multiple of micro_batch_size \(3\)"
    ):
        dry_run(replace(TINY, batch_size=13))
    (tmp_path / "a.txt").write_text("To know.\n" * 20)
    prepare_data(input=[str(tmp_path / "a.txt")], tokenizer="char", out=str(tmp_path / "data"))
    with pytest.raises(InputError, match=r"was made with the tokenizer .*, but gpt2 is"):
        dry_run(replace(TINY, data_dir=str(tmp_path / "data"), tokenizer="gpt2"))


def test_only_the_first_rank_measures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert dry_run(TINY) == {}
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("RANK", "0")
    dry_run(TINY)
    text = capsys.readouterr().out
    assert "2 ranks with 2 micro-batches of 3" in text
    assert "one of 2 with fsdp2" in text


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_memory_estimated_from_two_blocks_is_that_of_all_blocks(optimizer: str) -> None:
    config = replace(TINY, optimizer=optimizer)  # type: ignore[arg-type]
    shape = config.gpt_config(None)
    memory = measure_memory(config, shape, CPU, FLOAT32, 16, 3)
    whole = Step(config, shape, CPU, FLOAT32, 16, 1)
    states = [state for o in whole.parallel.optimizers for state in o.state.values()]  # type: ignore[attr-defined]
    assert memory.optimizer == sum(t.nbytes for state in states for t in state.values() if t.dim())
    assert memory.weights == 4 * sum(p.numel() for p in whole.model.parameters())
    assert memory.activations == activation_bytes(shape, CPU, FLOAT32, 16, 3)
    two = replace(shape, n_layer=2)
    assert memory.gathered == 4 * sum(p.numel() for p in GPT(two).parameters())
    assert memory.peak() > memory.peak(2) > memory.peak() / 2


def test_the_whole_model_is_timed_if_time_and_memory_allow() -> None:
    shape = TINY.gpt_config(None)
    memory = measure_memory(TINY, shape, CPU, FLOAT32, 16, 3)
    speed = measure_speed(TINY, shape, CPU, FLOAT32, 16, 3, memory)
    assert speed.n_sequences == 3
    step = Step(TINY, shape, CPU, FLOAT32, 16, 3)
    seconds = min(wall_seconds(step.micro_step, CPU) for _ in range(10)) / 3
    # By far more than the noise of a shared machine: seconds of a step instead of a sequence, or of one block, fail.
    assert seconds / 3 < speed.sequence < 30 * seconds
    step.micro_step()
    assert min(wall_seconds(step.update, CPU) for _ in range(10)) / 3 < speed.update


def test_activations_saved_for_backward_are_counted() -> None:
    """With 100 more hidden units per MLP, the additional activations are known exactly."""
    shape = replace(TINY, graph="gpt2").gpt_config(None)
    wide = replace(shape, n_inner=shape.n_inner + 100)
    more = activation_bytes(wide, CPU, FLOAT32, 16, 3) - activation_bytes(shape, CPU, FLOAT32, 16, 3)
    assert (
        more == 3 * 2 * 100 * 16 * 3 * 4
    )  # in each of 3 blocks GELU's input and output, 3 sequences of 16, float32


def test_a_model_too_large_to_measure_is_estimated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gpt_core.training.pretraining.measure_step.free_memory", lambda device: 1000.0)
    figures = dry_run(TINY)
    assert "estimated from 2 of the 3 blocks" in capsys.readouterr().out
    step = Step(TINY, TINY.gpt_config(None), CPU, FLOAT32, 16, 3)
    seconds = min(wall_seconds(step.micro_step, CPU) for _ in range(10)) / 3
    assert (
        1 / 30 < figures["tokens_per_s"] / (16 / seconds) < 3
    )  # with updates, and with the noise of a shared machine


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak memory is reset in /proc on Linux"
)
def test_the_estimated_memory_is_that_of_a_training(tmp_path: Path) -> None:
    """Estimates against the peak memory of trainings in a process, with evaluations and checkpoints."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("memory_driver.py")), str(tmp_path)],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ".", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name, memory in json.loads(done.stdout.splitlines()[-1]).items():
        assert 0.85 < memory["needed"] / memory["estimated"] < 1.1, (name, memory)
