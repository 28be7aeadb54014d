"""Checkpoints: kills at any moment, damaged files, another optimizer's state, pruning."""

import json
import math
import random
import resource
import signal
from pathlib import Path
from typing import Literal

import pytest
import torch

from gpt_core.common.errors import InputError
from gpt_core.data.prepare_data import prepare_data
from gpt_core.formats.tensor_file import save_tensors
from gpt_core.hardware.device import Numerics
from gpt_core.hub import run_folder
from gpt_core.hub.locate import resolve
from gpt_core.training import checkpoint
from gpt_core.training.config import TrainConfig
from gpt_core.training.loop import make_parallel
from gpt_core.training.parallel.parallel import Parallel
from gpt_core.training.parallel.ranks import ALONE
from tests import commands


class Place:
    """Minimal batches: only a data position."""

    position = 7

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def trained(optimizer: Literal["muon", "adamw"] = "adamw") -> Parallel:
    """A small model after one optimizer step."""
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([torch.nn.Linear(3, 3)])})
    parallel = make_parallel(model, TrainConfig(optimizer=optimizer), ALONE, Numerics())
    parallel.backward(model["blocks"][0](torch.ones(2, 3)).sum())
    parallel.update(torch.tensor(2.0), 1.0)
    return parallel


def save(out_dir: Path, step: int, **figures: float) -> Path:
    return checkpoint.save(
        out_dir, step, save_model=lambda folder, weights: save_tensors(folder / "model.safetensors", weights),
        parallel=trained(), batches=Place(), figures=figures, best={}, numerics=Numerics(), ranks=ALONE,
    )  # fmt: skip


@pytest.mark.parametrize(("steps", "kills"), [(14, 9), pytest.param(600, 300, marks=pytest.mark.slow)])
def test_killed_at_any_moment_a_run_ends_in_the_same_bits(tmp_path: Path, steps: int, kills: int) -> None:
    """Killed while a checkpoint is saved, and during forwards."""
    (tmp_path / "a.txt").write_text("To know what you know, and what you do not: that is knowledge.\n" * 30)
    prepare_data(input=[str(tmp_path / "a.txt")], tokenizer="char", out=str(tmp_path / "data"))
    draw = random.Random(1)
    moments = [
        draw.choice((f"disk:{draw.randint(1, 25)}", f"forward:{draw.randint(1, 9)}")) for _ in range(kills)
    ]
    driver = Path(__file__).with_name("kill_driver.py")
    command = [driver, tmp_path / "data", tmp_path, str(steps), *moments]
    done = commands.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "damaged" not in done.stderr  # a kill never leaves a damaged folder under a checkpoint's name
    said = done.stdout
    assert said.count("killed\n") >= kills - 2, said
    assert said.endswith("killed None exit 0\n"), said
    one, two = (tmp_path / run / f"step-{steps}" for run in ("straight", "killed"))
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    assert json.loads((one / "state.json").read_text()) == json.loads((two / "state.json").read_text())


def test_damaged_checkpoints_are_skipped_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = save(tmp_path, 9), save(tmp_path, 10)
    assert run_folder.latest(tmp_path) == bad
    for path in sorted(bad.iterdir()):
        whole = path.read_bytes()
        middle = len(whole) // 2
        for torn in (
            whole[:middle],
            whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
            b"",
            None,
        ):
            path.unlink()
            if torn is not None:
                path.write_bytes(torn)
            capsys.readouterr()
            assert run_folder.latest(tmp_path) == good
            message = capsys.readouterr().err
            assert "Skipping a checkpoint" in message
            assert "step-10 is damaged" in message
            assert path.name in message
            path.write_bytes(whole)
    assert run_folder.latest(tmp_path) == bad


def test_best_or_latest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_folder.best_or_latest(tmp_path) is None
    (tmp_path / "step-x").mkdir()
    (tmp_path / "step-1").write_text("no folder")
    assert run_folder.best_or_latest(tmp_path) is None
    save(tmp_path, 9)
    newest = save(tmp_path, 10)
    assert run_folder.best_or_latest(tmp_path) == newest  # none was evaluated
    best = save(tmp_path, 20, val_loss=1.0)
    save(tmp_path, 30, val_loss=2.0)
    save(tmp_path, 40, val_loss=math.nan)
    save(tmp_path, 100)
    assert run_folder.best_or_latest(tmp_path) == best
    assert run_folder.latest(tmp_path) == tmp_path / "step-100"
    (best / "model.safetensors").write_bytes(b"")
    assert run_folder.best_or_latest(tmp_path) == tmp_path / "step-30"
    assert "step-20 is damaged" in capsys.readouterr().err


def test_files_are_read_only_where_they_are_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that is a folder instead cannot be read."""
    save(tmp_path, 1, val_loss=1.0)
    for step in (2, 3, 4):
        save(tmp_path, step, val_loss=2.0)
    best = tmp_path / "step-1"
    (best / "optimizer.safetensors").unlink()
    (best / "optimizer.safetensors").mkdir()
    assert resolve(tmp_path) == best  # to open the model takes the model's files
    (best / "model.safetensors").unlink()
    (best / "model.safetensors").mkdir()
    run_folder.prune(tmp_path, keep=1)  # to compare validation losses takes none
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-1", "step-4"]
    assert capsys.readouterr().err == ""
    content = (best / "state.json").read_text()
    (best / "state.json").write_text(content.replace('"val_loss": 1.0', '"val_loss": 0.0'))
    save(tmp_path, 5, val_loss=1.5)
    save(tmp_path, 6, val_loss=3.0)
    run_folder.prune(tmp_path, keep=1)
    assert "step-1 is damaged: state.json does not match its checksum" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-5", "step-6"]


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 2.0), (10, 2.0)):
        save(tmp_path, step, val_loss=loss)
    run_folder.prune(tmp_path, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-10", "step-2", "step-4"]


def test_a_damaged_newer_checkpoint_is_renamed(tmp_path: Path) -> None:
    whole, torn = save(tmp_path, 4), save(tmp_path, 10)
    (torn / "state.json").unlink()
    (tmp_path / ".step-11.xyz").mkdir()
    run_folder.prepare(tmp_path, step=4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-4", "torn-step-10"]
    save(tmp_path, 6)
    run_folder.prune(tmp_path, keep=1)
    assert run_folder.latest(tmp_path) == tmp_path / "step-6"
    assert not whole.exists()


def test_two_trainings_do_not_share_a_folder(tmp_path: Path) -> None:
    with run_folder.lock_run_folder(tmp_path / "run"):
        with pytest.raises(InputError, match=r"Another training is running in .*run"):
            run_folder.lock_run_folder(tmp_path / "run").__enter__()
        save(tmp_path / "run", 4)
        with pytest.raises(InputError, match=r"Another training has just written .*step-4"):
            run_folder.prepare(tmp_path / "run", step=0)
    with run_folder.lock_run_folder(tmp_path / "run"):
        assert run_folder.latest(tmp_path / "run") == tmp_path / "run" / "step-4"


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    good = save(tmp_path, 9)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails instead
    try:
        for limit in (0, 100, 400):  # bytes: the model, the optimizer, state.json do not fit
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
            with pytest.raises(OSError, match=r"could not be written|File too large"):
                save(tmp_path, 10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [p.name for p in tmp_path.iterdir()] == ["step-9"]
    assert run_folder.latest(tmp_path) == good


def test_restore_loads_the_optimizer_and_the_data_position(tmp_path: Path) -> None:
    path = save(tmp_path, 9, val_loss=1.5)
    parallel, place = trained(), Place()
    expected = parallel.optimizer_tensors()
    parallel.load_optimizer_tensors({name: torch.zeros_like(tensor) for name, tensor in expected.items()})
    place.position = 0
    state = checkpoint.restore(path, parallel, place)
    assert (state["step"], state["figures"]) == (9, {"val_loss": 1.5})
    assert place.position == 7
    restored = parallel.optimizer_tensors()
    assert restored.keys() == expected.keys()
    assert all(torch.equal(restored[name], expected[name]) for name in expected)


def test_another_optimizers_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds AdamW's state of blocks\.0\.weight"):
        checkpoint.restore(save(tmp_path, 9), trained("muon"), Place())
