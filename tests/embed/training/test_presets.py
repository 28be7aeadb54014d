"""The presets of embedding training in configs/."""

from pathlib import Path

import pytest

from embed.training.config import TrainEmbedderConfig
from gpt_core.common.presets import read_preset
from gpt_core.hub.locate import KNOWN_MODELS

PRESETS = sorted(Path("configs").glob("embedder*.yaml"))


def test_all_presets_exist() -> None:
    names = {"embedder", "embedder_distill", "embedder_unified", "embedder_mini", "embedder_mini_table"}
    assert {path.stem for path in PRESETS} == names


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_can_be_read_and_names_its_command(path: Path) -> None:
    config = read_preset(TrainEmbedderConfig, path)
    ours = {"scratch", "runs/zhizhi-mini/table"}  # from nothing, and the first stage's result
    assert {config.init_from, config.teacher or config.init_from} <= KNOWN_MODELS.keys() | ours
    assert len(config.weights) in (0, len(config.data))
    head = "".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    assert f"scripts/train_embedder.py --config {path}" in head
    assert bool(config.data) != ("--data" in head)
