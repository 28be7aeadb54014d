"""The presets in configs/: the figures and commands in their head comments match the configs."""

import re
from pathlib import Path

import pytest
import torch

from gpt_core.common.presets import read_preset
from gpt_core.data.batches import check_batch_sizes
from gpt_core.model.config import GPTConfig
from gpt_core.model.gpt import GPT
from gpt_core.tasks.config import FinetuneConfig
from gpt_core.training.pretraining.config import PretrainConfig

PRESETS = sorted(
    path for path in Path("configs").glob("*.yaml") if not path.stem.startswith(("embedder", "chat", "task"))
)
TASK_PRESETS = sorted(
    path for path in Path("configs").glob("*.yaml") if path.stem.startswith(("chat", "task"))
)
NEEDED = {
    "shakespeare_char", "shakespeare_char_cpu", "shakespeare_char_cpu_gpt2", "shakespeare_char_2cores",
    "shakespeare_finetune", "gpt2-124m", "gpt2-medium", "gpt2-large", "gpt2-xl", "eval-gpt2", "eval-gpt2-medium",
    "eval-gpt2-large", "eval-gpt2-xl", "small-41m", "small-90m", "small-300m", "smoke",
}  # fmt: skip
GPT2 = {  # OpenAI's models: layers, heads, width
    "gpt2": (12, 12, 768), "gpt2-medium": (24, 16, 1024), "gpt2-large": (36, 20, 1280), "gpt2-xl": (48, 25, 1600)
}  # fmt: skip


def head_of(path: Path) -> str:
    """The comment at the head of a preset, without the `#` signs."""
    lines = path.read_text().splitlines()
    return "\n".join(
        line.removeprefix("#") for line in lines[: [x.startswith("#") for x in lines].index(False)]
    )


def shape_of(config: PretrainConfig) -> GPTConfig:
    if config.init_from == "scratch":
        return config.gpt_config(None)
    n_layer, n_head, n_embd = GPT2[config.init_from.removeprefix("openai-community/")]
    return GPTConfig.gpt2(n_layer=n_layer, n_head=n_head, n_embd=n_embd)


@pytest.mark.parametrize("path", TASK_PRESETS, ids=lambda path: path.stem)
def test_presets_of_tasks_are_read_and_their_commands_exist(path: Path) -> None:
    read_preset(FinetuneConfig, path)
    commands = [line.strip() for line in head_of(path).splitlines() if "scripts/" in line]
    assert f"scripts/finetune.py --config {path}" in commands[0]
    for command in commands:
        assert Path(next(w for w in command.split() if w.startswith("scripts/"))).exists()


def test_all_presets_are_there() -> None:
    assert {path.stem for path in PRESETS} == NEEDED


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_the_head_comment_of_a_preset_matches_its_config(path: Path) -> None:
    config, head = read_preset(PretrainConfig, path), head_of(path)
    prose = " ".join(head.split())
    shape = shape_of(config)
    with torch.device("meta"):
        n_parameters = sum(p.numel() for p in GPT(shape).parameters())
    assert f"{n_parameters:,} parameters" in prose
    assert re.search(r"\d (GiB|MiB)", prose)
    if not config.eval_only:
        n_tokens = config.max_iters * config.batch_size * (config.block_size or shape.block_size)
        said = re.search(r"([\d.]+) (million|billion) tokens, ([\d.,]*\d) per parameter", prose)
        assert said is not None
        assert float(said[1]) * {"million": 1e6, "billion": 1e9}[said[2]] == pytest.approx(n_tokens, rel=0.06)
        assert float(said[3].replace(",", "")) == pytest.approx(n_tokens / n_parameters, rel=0.06)

    commands = [line.strip() for line in head.splitlines() if "scripts/" in line]
    assert commands
    for command in commands:
        assert Path(next(w for w in command.split() if w.startswith("scripts/"))).exists()
    assert f"--config {path}" in commands[-1]
    ranks = re.search(r"--nproc_per_node=(\d+)", commands[-1])
    check_batch_sizes(
        config.batch_size, config.micro_batch_size, int(ranks[1]) if ranks else 1, config.batch_size, 0
    )
    if config.init_from == "scratch":
        makes = [c for c in commands if "prepare_data.py" in c]
        assert makes
        assert makes[-1].endswith(f"--out {config.data_dir}")


def test_presets_have_nanogpts_sizes() -> None:
    def key_figures(name: str) -> tuple[int | None, ...]:
        c = read_preset(PretrainConfig, f"configs/{name}.yaml")
        return c.n_layer, c.n_head, c.n_embd, c.block_size, c.batch_size, c.max_iters

    assert key_figures("shakespeare_char_cpu") == (4, 4, 128, 64, 12, 2000)
    assert key_figures("shakespeare_char_cpu_gpt2") == (4, 4, 128, 64, 12, 2000)
    assert key_figures("shakespeare_char") == (6, 6, 384, 256, 64, 5000)
    assert key_figures("gpt2-124m") == (12, 12, 768, 1024, 480, 600_000)
    for name, size in GPT2.items():
        assert key_figures("gpt2-124m" if name == "gpt2" else name)[:3] == size


def test_character_presets_have_65_tokens() -> None:
    for name in NEEDED:
        if "char" in name or name == "smoke":
            assert read_preset(PretrainConfig, f"configs/{name}.yaml").gpt_config(None).vocab_size == 65
