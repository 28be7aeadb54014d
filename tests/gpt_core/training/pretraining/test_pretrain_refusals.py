"""Errors that pretraining raises at its start, and its messages when disk or memory is full."""

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gpt_core.common.errors import InputError
from gpt_core.data.prepare_data import prepare_data
from gpt_core.hub import run_folder
from gpt_core.training.pretraining import pretrain as module
from gpt_core.training.pretraining.config import PretrainConfig
from gpt_core.training.pretraining.pretrain import pretrain


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PretrainConfig:
    """A tiny training whose out_dir does not exist."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "a.txt").write_text(
        "To know what you know, and to know what you do not: that is knowledge. " * 20
    )
    prepare_data(input=[str(folder / "a.txt")], tokenizer="char", out=str(folder / "data"))
    return PretrainConfig(
        data_dir=str(folder / "data"), out_dir=str(folder / "run"), max_iters=1, warmup_iters=0, n_layer=1, n_head=1,
        n_embd=32, block_size=16, batch_size=2, device="cpu", dtype="float32", threads=1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"eval_only": True}, "has no checkpoint, and init_from is scratch"),
        ({"sample_tokens": 5}, r"'\\n' \(U\+000A\) is not in this vocabulary"),  # the text has no newline
        ({"sample_tokens": 5, "sample_prompt": "know " * 4}, "sample_prompt has 20 tokens"),
    ],
)
def test_a_rejected_configuration_writes_nothing(config: PretrainConfig, keys: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pretrain(replace(config, **keys))
    assert not Path(config.out_dir).exists()


def test_damaged_document_offsets_are_rejected(config: PretrainConfig, tmp_path: Path) -> None:
    data = shutil.copytree(config.data_dir, tmp_path / "data")
    for size in (130, 0):
        os.truncate(data / "train-00000.documents.npy", size)
        with pytest.raises(InputError, match=r"train-00000\.documents\.npy is damaged"):
            pretrain(replace(config, data_dir=str(data), out_dir=str(tmp_path / "run")))


def test_a_run_folder_in_use_is_not_changed(config: PretrainConfig, tmp_path: Path) -> None:
    with run_folder.lock_run_folder(tmp_path), pytest.raises(InputError, match="Another training is running"):
        pretrain(replace(config, out_dir=str(tmp_path)))
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]
    pretrain(replace(config, out_dir=str(tmp_path)))
    assert run_folder.latest(tmp_path) == tmp_path / "step-1"


def test_a_full_disk_names_the_folder(
    config: PretrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **keys: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # an OSError without a file name

    monkeypatch.setattr(module, "train", full)
    with pytest.raises(OSError, match=r"free disk space and start again: .*run"):
        pretrain(replace(config, out_dir=str(tmp_path / "run")))


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 B")]
)
def test_too_little_memory_says_what_to_change(
    config: PretrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*args: object, **keys: object) -> None:
        raise error

    monkeypatch.setattr(module, "train", full)
    with pytest.raises(InputError, match="micro-batches of 2 sequences; give a smaller micro_batch_size"):
        pretrain(replace(config, out_dir=str(tmp_path)))
