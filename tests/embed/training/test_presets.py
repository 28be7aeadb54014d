"""The presets of embedding training in configs/."""

from pathlib import Path

import pytest

from embed.training.config import TrainEmbedderConfig
from gpt_core.common.presets import read_preset
from gpt_core.hub.locate import KNOWN_MODELS

PRESETS = sorted(Path("configs").glob("embedder*.yaml"))


def test_all_presets_exist() -> None:
    assert {path.stem for path in PRESETS} == {"embedder", "embedder_distill", "embedder_unified"}


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_can_be_read_and_names_its_command(path: Path) -> None:
    config = read_preset(TrainEmbedderConfig, path)
    assert {config.init_from, config.teacher or config.init_from} <= KNOWN_MODELS.keys()
    head = "".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    assert f"scripts/train_embedder.py --config {path}" in head
    assert bool(config.data) != ("--data" in head)
