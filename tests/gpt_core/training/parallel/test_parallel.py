"""Several ranks: the same gradients, data and checkpoints as one process; and what happens if a rank is killed."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from gpt_core.data.prepare_data import prepare_data
from gpt_core.hub import run_folder

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "."}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    (folder / "a.txt").write_text("To know what you know, and what you do not: that is knowledge.\n" * 60)
    prepare_data(input=[str(folder / "a.txt")], tokenizer="char", out=str(folder / "data"))
    return folder / "data"


Drive = Callable[[str, Path], tuple[Any, str]]


@pytest.fixture(scope="module")
def drive(data_dir: Path) -> Iterator[Drive]:
    """drive(scenario, folder): a scenario of ranks_driver.py; its results, and everything on its standard error."""
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("ranks_driver.py")), str(data_dir)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT,
    ) as driver:  # fmt: skip
        assert driver.stdin is not None
        assert driver.stdout is not None

        def run(scenario: str, folder: Path) -> tuple[Any, str]:
            print(scenario, folder, file=driver.stdin, flush=True)
            status = driver.stdout.readline()
            said = (folder / "said.txt").read_text()
            assert status == "0\n", said
            return json.loads((folder / "found.json").read_text()), said

        yield run


def test_accumulation_and_ranks_do_not_change_loss_and_gradient(drive: Drive, tmp_path: Path) -> None:
    found, said = drive("gradients", tmp_path)
    assert list(found) == ["1x1", "1x4", "2x2", "4x1"]
    for name, run in found.items():
        assert set(run["codes"]) == {0}, said
        assert run["losses"] == pytest.approx(found["1x1"]["losses"], abs=1e-10), name
        assert run["ranks_differ"] == 0
        assert run["difference"] < 1e-10, name
        assert run["length"] == pytest.approx(0.5, abs=1e-6)  # clipped, so that clipping is compared as well


def test_a_run_resumes_with_other_numbers_of_ranks_and_sharding(drive: Drive, tmp_path: Path) -> None:
    found, said = drive("resharded", tmp_path)
    for name, run in found.items():
        assert set(run["codes"]) == {0}, said
        assert len(run["losses"]) == 20
        assert run["losses"] == pytest.approx(found["two"]["losses"], abs=1e-5), name
    assert found["two"]["losses"][-1] < 0.8 * found["two"]["losses"][0]
    one, mixed = (load_file(tmp_path / run / "step-20" / "model.safetensors") for run in ("one", "mixed"))
    assert one.keys() == mixed.keys()  # FSDP2 and DDP leave the same folder
    files = [{p.name for p in (tmp_path / run / "step-20").iterdir()} for run in ("fsdp2", "two")]
    assert files[0] == files[1]


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak memory is read from /proc on Linux"
)
def test_fsdp2_starts_with_one_whole_model_and_the_weights_of_a_single_process(
    drive: Drive, tmp_path: Path
) -> None:
    found, said = drive("started", tmp_path)
    assert found["codes"] == [0, 0], said
    assert found["same"] == [True, True]
    first, second = found["peaks"]
    assert first < 2.6  # the whole model, its first loss, and what libraries take
    assert second < 1.2  # its shard, a tensor on its way, and what libraries take


def test_killed_ranks_resume_to_the_same_bits(drive: Drive, tmp_path: Path) -> None:
    found, said = drive("resumed", tmp_path)
    assert found == {"straight": [0, 0], "killed": [1, -9], "left": ["step-3"], "again": [0, 0]}, said
    assert "Another rank died" in said
    assert "Traceback" not in said
    for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
        straight, killed = (tmp_path / run / "step-6" / name for run in ("straight", "killed"))
        assert straight.read_bytes() == killed.read_bytes()


def test_sigterm_to_one_rank_saves_one_step_and_ends_all(drive: Drive, tmp_path: Path) -> None:
    found, said = drive("terminated", tmp_path)
    assert found["codes"] == [143, 143], said
    assert found["checkpoints"] == [f"step-{found['last']}"]
    assert run_folder.latest(tmp_path / "run") == tmp_path / "run" / found["checkpoints"][0]


def test_ddp_is_freed_before_the_process_group_is_destroyed(drive: Drive, tmp_path: Path) -> None:
    """If DDP's reducer held the last reference to the gloo group, freeing it could deadlock on the GIL."""
    found, said = drive("failed", tmp_path)
    assert found == {"left": False, "said": "of another kind", "group": False}, said


def test_bad_input_ends_every_rank_with_one_line(drive: Drive, tmp_path: Path) -> None:
    found, said = drive("refused", tmp_path)
    assert found == {"torn": [1, 1], "does not divide": [1, 1], "alone": [1]}
    assert said.count("train-00000.bin is damaged: its checksum does not match") == 1  # only rank 0 checks it
    assert "batch_size is 9; it must be a multiple of the number of ranks (2)" in said
    assert "parallel is fsdp2, which needs ranks: start with torchrun --nproc_per_node=N" in said
    assert "Traceback" not in said


def test_torchrun_restarts_a_killed_worker_from_the_last_checkpoint(
    drive: Drive, data_dir: Path, tmp_path: Path
) -> None:
    """One of torchrun's two workers is killed; the run resumes by itself, and no saved step is lost."""
    keys: dict[str, Any] = {
        "max_iters": 60, "eval_interval": 5, "log_interval": 1, "warmup_iters": 2, "n_layer": 1, "n_head": 2,
        "n_embd": 32, "block_size": 16, "batch_size": 12, "device": "cpu", "dtype": "float32", "threads": 1,
        "keep_checkpoints": 20,
    }  # fmt: skip
    killed = tmp_path / "killed"
    options = keys | {"data_dir": data_dir, "out_dir": killed}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [
        *torchrun,
        "--max-restarts=1",
        "--monitor-interval=0.1",
        str(Path("scripts/pretrain.py").resolve()),
    ]
    run = subprocess.Popen(
        [*command, *(f"--{k}={v}" for k, v in options.items())],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    end = time.monotonic() + 240
    while run.poll() is None and time.monotonic() < end and not (killed / "step-5").exists():
        time.sleep(0.02)
    os.kill(max(children_of(run.pid)), 9)
    said = run.communicate(timeout=240)[1]
    assert run.returncode == 0, said
    assert "exitcode: -9" in said

    (tmp_path / "keys.json").write_text(json.dumps(keys))
    assert drive("uninterrupted", tmp_path)[0] == [0, 0]
    for name in ("model.safetensors", "optimizer.safetensors"):
        one, other = (tmp_path / run / "step-60" / name for run in ("straight", "killed"))
        assert one.read_bytes() == other.read_bytes()
    logs = [
        [json.loads(line) for line in (tmp_path / run / "log.jsonl").read_text().splitlines()]
        for run in ("straight", "killed")
    ]
    assert [row["loss"] for row in logs[0] if "loss" in row] == [
        row["loss"] for row in logs[1] if "loss" in row
    ]


def children_of(pid: int) -> list[int]:
    """Child processes that run the training script."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    found = []
    for child in map(int, listed):
        try:
            if b"pretrain.py" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
        except OSError:  # the process ended meanwhile
            continue
    return found
