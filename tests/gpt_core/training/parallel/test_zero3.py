"""ZeRO-3 in real processes against the same steps in plain PyTorch, its checkpoints, and rejected settings files."""

import dataclasses
import json
import math
import os
import socket
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from gpt_core.common.errors import InputError
from gpt_core.data.prepare_data import prepare_data
from gpt_core.hardware.device import Numerics
from gpt_core.hub import run_folder
from gpt_core.training.config import TrainConfig
from gpt_core.training.parallel.ranks import Ranks
from gpt_core.training.parallel.zero3 import ZeRO3
from gpt_core.training.parallel.zero3_config import read_zero3_config
from gpt_core.training.pretraining.config import PretrainConfig
from gpt_core.training.pretraining.pretrain import pretrain

needs_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="deepspeed is not installed: pip install 'zhizhi[deepspeed]'"
)


class Runs:
    """The results that the driver's ranks saved."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, name: str) -> dict[str, Any]:
        return torch.load(self.folder / f"{name}.pt")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Every scenario of the driver, run once."""
    folder = tmp_path_factory.mktemp("zero3")
    driver = Path(__file__).with_name("zero3_driver.py")
    done = subprocess.run(
        [sys.executable, str(driver), str(folder)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    said = (done.stdout + done.stderr).splitlines()
    # DeepSpeed's other messages are suppressed.
    assert [line for line in said if "OVERFLOW! Skipping step" not in line] == []
    return Runs(folder)


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


@needs_deepspeed
@pytest.mark.parametrize(
    ("name", "reference", "tolerance"),
    [
        ("True-True-float32", "True-torch.float32", 5e-6),
        ("False-False-float32", "False-torch.float32", 5e-6),
        ("True-True-bfloat16", "True-torch.bfloat16", 2e-3),
    ],
    ids=["tied, offloaded", "untied, some frozen", "bfloat16"],
)
def test_zero3_follows_the_gradient_of_the_mean_over_all_targets(
    runs: Runs, name: str, reference: str, tolerance: float
) -> None:
    plain, mine = runs[f"plain-{reference}"], runs[f"run-{name}-2-0"]
    for expected, row in zip(plain["rows"], mine["rows"], strict=True):
        assert row == pytest.approx(expected, abs=tolerance)  # the loss, and the norm before clipping
    assert plain["rows"][-1][0] < plain["rows"][0][0] - 0.2
    assert all(norm > 0.5 for _, norm in plain["rows"])  # every step is clipped
    assert largest_difference(plain["weights"], mine["weights"]) < tolerance
    assert largest_difference(plain["end"], mine["state"]) < tolerance
    other = runs[f"run-{name}-2-1"]
    assert other["weights"] == other["state"] == {}
    assert other["rows"] == mine["rows"]


@needs_deepspeed
def test_the_plain_gpt_evaluates_on_every_rank(runs: Runs) -> None:
    for rank in (0, 1):
        mine = runs[f"run-True-True-float32-2-{rank}"]
        torch.testing.assert_close(
            mine["logits"], runs["plain-True-torch.float32"]["logits"], atol=1e-5, rtol=0
        )
        assert torch.equal(mine["logits"], mine["logits of hidden"])  # generation computes them separately


@needs_deepspeed
def test_training_continues_after_an_evaluation_and_detects_errors(runs: Runs) -> None:
    mine = runs["run-True-True-float32-2-0"]
    assert mine["step after"][0][0] < mine["rows"][-3][0]
    assert not math.isfinite(mine["norm of a broken step"])
    assert "Muon's state of blocks.0.attn.q.weight, which this run does not train" in mine["refusal"]


@needs_deepspeed
def test_each_rank_holds_only_its_shard(runs: Runs) -> None:
    for rank in (0, 1):
        sizes = runs[f"run-True-True-float32-2-{rank}"]["sizes"]
        assert sizes["part"] == sizes["exp_avg"] == sizes["exp_avg_sq"] == sizes["whole"] // 2
        assert sizes["gathered between steps"] == 0
        assert sizes["gathered in a forward"] == sizes["of it needed"]


@needs_deepspeed
def test_resuming_gives_the_same_bits(runs: Runs) -> None:
    whole, half, rest = runs["run-True-True-float32-2-0"], runs["half-0"], runs["from-half-2-0"]
    assert half["rows"] + rest["rows"] == whole["rows"]
    for part in ("weights", "state"):
        assert largest_difference(whole[part], rest[part]) == 0


@needs_deepspeed
def test_three_ranks_resume_a_checkpoint_of_one_process(runs: Runs) -> None:
    plain, rest = runs["plain-True-torch.float32"], runs["from-plain-3-0"]
    for expected, row in zip(plain["rows"][len(plain["rows"]) // 2 :], rest["rows"], strict=True):
        assert row == pytest.approx(expected, abs=5e-6)
    assert largest_difference(plain["weights"], rest["weights"]) < 5e-6
    assert largest_difference(plain["end"], rest["state"]) < 5e-6


@pytest.mark.slow
@needs_deepspeed
def test_the_deepspeed_launcher_trains_the_same_model_as_one_process(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(
        "To know what you know, and to know what you do not: that is knowledge.\n" * 40
    )
    prepare_data(input=[str(tmp_path / "a.txt")], tokenizer="char", out=str(tmp_path / "data"))
    alone = PretrainConfig(
        data_dir=str(tmp_path / "data"), out_dir=str(tmp_path / "alone"), max_iters=6, eval_interval=6, warmup_iters=1,
        n_layer=1, n_head=2, n_embd=32, block_size=16, batch_size=8, vocab_multiple=1, optimizer="adamw",
        learning_rate=1e-3, device="cpu", dtype="float32", threads=1, sample_tokens=5,
    )  # fmt: skip
    figures = pretrain(alone)

    shared = {"out_dir": str(tmp_path / "shared"), "parallel": "deepspeed"}
    shared["deepspeed_config"] = "configs/ds_zero3_offload.json"
    (tmp_path / "shared.yaml").write_text(yaml.safe_dump(dataclasses.asdict(alone) | shared))
    launcher = [
        sys.executable,
        "-m",
        "deepspeed.launcher.runner",
        "--num_gpus",
        "2",
        "--master_port",
        free_port(),
    ]
    command = [*launcher, "scripts/pretrain.py", "--config", str(tmp_path / "shared.yaml")]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "PYTHONPATH": "."}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 ranks, deepspeed" in done.stdout
    one, two = (run_folder.best_or_latest(out_dir) for out_dir in (alone.out_dir, shared["out_dir"]))
    assert one is not None
    assert two is not None
    assert run_folder.read_state(two)["figures"]["val_loss"] == pytest.approx(figures["val_loss"], abs=1e-5)
    assert {p.name for p in one.iterdir()} == {p.name for p in two.iterdir()}
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert largest_difference(load_file(one / file), load_file(two / file)) < 1e-4


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def settings_of(tmp_path: Path, given: Any, dtype: str = "float32", **keys: Any) -> dict[str, Any]:
    """The settings passed to DeepSpeed on two ranks, with `given` as the settings file."""
    file = tmp_path / "ds.json"
    file.write_text(given if isinstance(given, str) else json.dumps(given))
    config = PretrainConfig(
        optimizer="adamw", parallel="deepspeed", deepspeed_config=str(file), batch_size=12, micro_batch_size=3
    )
    return read_zero3_config(replace(config, **keys), 2, Numerics("cpu", dtype), n_parameters=1000)


def test_settings_that_the_file_leaves_open_come_from_the_configuration(tmp_path: Path) -> None:
    shipped = json.loads(Path("configs/ds_zero3_offload.json").read_text())
    settings = settings_of(tmp_path, shipped, grad_clip=0.25)
    assert settings["gradient_clipping"] == 0.25
    assert settings["zero_optimization"]["offload_param"]["device"] == "cpu"
    assert settings["zero_optimization"]["reduce_bucket_size"] == 1000
    assert "torch_autocast" not in settings
    assert settings_of(tmp_path, shipped, "bfloat16")["torch_autocast"]["dtype"] == "bfloat16"

    agreeing = {
        "train_batch_size": 12, "train_micro_batch_size_per_gpu": 3, "gradient_accumulation_steps": 2,
        "gradient_clipping": 1.0, "bf16": {"enabled": True}, "fp16": {"enabled": "auto", "loss_scale": 0},
        "optimizer": {"type": "AdamW", "params": {"lr": 3e-3, "betas": [0.9, 0.99], "weight_decay": "auto"}},
        "zero_optimization": {"stage": 3, "reduce_bucket_size": 77},
    }  # fmt: skip
    assert settings_of(tmp_path, agreeing, "bfloat16")["zero_optimization"]["reduce_bucket_size"] == 77
    assert settings_of(tmp_path, {})["zero_optimization"]["stage"] == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{", "ds.json is not valid JSON"),
        ([], "ds.json holds a list; expected an object"),
        (
            {"zero_optimization": True},
            "sets zero_optimization to true; expected an object with settings such as stage",
        ),
        ({"zero_optimization": None}, "sets zero_optimization to null; expected an object"),
        (
            {"torch_autocast": True},
            "sets torch_autocast to true; expected an object with settings such as enabled",
        ),
        ({"optimizer": "AdamW"}, 'sets optimizer to "AdamW"; expected an object with settings such as type'),
        (
            {"optimizer": {"params": []}},
            r"sets optimizer\.params to \[\]; expected an object with settings such as lr",
        ),
        ({"bf16": 1}, "sets bf16 to 1; expected an object with settings such as enabled"),
        (
            {"zero_optimization": {"offload_param": "cpu"}},
            r'sets zero_optimization\.offload_param to "cpu"; expected an object with settings such as device',
        ),
        ({"train_batch_size": 16}, "train_batch_size to 16, but batch_size is 12"),
        ({"train_micro_batch_size_per_gpu": 2}, "to 2, but micro_batch_size is 3"),
        ({"gradient_accumulation_steps": 4}, "to 4, but batch_size and micro_batch_size give 2"),
        ({"gradient_clipping": 0.5}, "gradient_clipping to 0.5, but grad_clip is 1.0"),
        ({"optimizer": {"type": "Lamb"}}, "optimizer.type to 'Lamb', but optimizer is adamw"),
        ({"optimizer": {"params": {"lr": 0.1}}}, "optimizer.params.lr to 0.1, but learning_rate is 0.003"),
        (
            {"optimizer": {"params": {"amsgrad": True}}},
            "optimizer.params.amsgrad to True, but .* no such key",
        ),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler.type to 'WarmupLR', but schedule is cosine"),
        ({"bf16": {"enabled": True}}, "bf16.enabled to True, but dtype is float32"),
        ({"fp16": {"enabled": True}}, "fp16.enabled to True, but dtype is float32"),
        (
            {"zero_optimization": {"stage": 2}},
            "zero_optimization.stage to 2, but parallel deepspeed means stage 3",
        ),
        (
            {"zero_optimization": {"offload_param": {"device": "nvme", "nvme_path": "/tmp"}}},
            "offload_param.device to 'nvme', but only cpu and none",
        ),
        ({"curriculum_learning": {"enabled": True}}, "curriculum_learning.enabled, which is not supported"),
    ],
)
def test_a_file_that_contradicts_the_configuration_names_both(
    tmp_path: Path, given: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        settings_of(tmp_path, given)
    assert "\n" not in str(refusal.value)


def test_unsupported_settings_are_rejected_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="optimizer is muon, which needs whole matrices"):
        TrainConfig(parallel="deepspeed", deepspeed_config="ds.json")
    with pytest.raises(InputError, match=r"There is no file nowhere\.json"):
        settings_of(tmp_path, {}, deepspeed_config="nowhere.json")
    with pytest.raises(InputError, match="dtype is float16"):
        settings_of(tmp_path, {}, "float16")
    config = TrainConfig(
        parallel="deepspeed", deepspeed_config="configs/ds_zero3_offload.json", optimizer="adamw"
    )
    with pytest.raises(InputError, match="needs ranks: start with torchrun"):
        ZeRO3(torch.nn.Linear(2, 2), config, Ranks(), Numerics("cpu"))
