"""The output and plots of inspect_model, against transformers and against the memory that is allocated."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from gpt_core.common.errors import InputError
from gpt_core.evaluation.inspect_model import (
    inspect_model,
    memory_lines,
    next_tokens,
    parameter_lines,
    prompt_labels,
)
from gpt_core.evaluation.plots import attention_maps, drawable
from gpt_core.generation.engine import Engine
from gpt_core.generation.fast_model import InferenceDtype, prepare
from gpt_core.hardware.device import pick_device
from gpt_core.model.config import GPTConfig
from gpt_core.model.gpt import GPT
from gpt_core.tokenizer.tokenizer import Tokenizer
from tests import commands
from tests.tiny_models import GRAPHS, save_model

ROOT = Path(__file__).parents[3]
GPT2 = Tokenizer.from_pretrained("gpt2")

# GPT-Neo's graph: every other layer attends to the last five tokens
WINDOWS = replace(
    GRAPHS["gpt2"], attn_bias="output", scale_attention=False, n_layer=4, window=5, window_layers=(1, 3)
)


@pytest.fixture(scope="module", params=["qwen3", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.mark.parametrize("config", [*GRAPHS.values(), WINDOWS], ids=[*GRAPHS, "windows"])
def test_attention_and_next_tokens_are_those_of_transformers(config: GPTConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = GPT(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)  # farther from uniform
    model.save_pretrained(tmp_path)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    for n_tokens in (1, 7, 45):  # shorter and longer than head_dim
        ids = torch.arange(n_tokens) * 7 % 320
        with torch.no_grad():
            out = reference(ids[None], output_attentions=True)
        maps = attention_maps(model, ids.tolist())
        assert torch.allclose(maps, torch.cat(out.attentions), atol=1e-5)
        probabilities = out.logits[0, -1, :300].softmax(-1)
        best, entropy = next_tokens(model, ids.tolist(), 5, n_tokens=300)
        assert [p for _, p in best] == pytest.approx(probabilities.topk(5).values.tolist(), rel=1e-4)
        assert [i for i, _ in best] == probabilities.topk(5).indices.tolist()
        assert entropy == pytest.approx(-(probabilities * probabilities.log2()).sum().item(), rel=1e-4)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("graph", ["qwen3", "gpt2"])
def test_every_parameter_is_counted_once(graph: str, tied: bool) -> None:
    model = GPT(replace(GRAPHS[graph], tie_embeddings=tied))
    lines = parameter_lines(model)
    counts = [int(line.rsplit(maxsplit=2)[-2].replace(",", "")) for line in lines[1:]]
    total = sum(p.numel() for p in model.parameters())
    rows, kinds = counts[:-5], counts[-5:-1]
    assert counts[-1] == sum(rows) == sum(kinds) == total
    assert ("(and head)" in "\n".join(lines)) == tied
    assert len(rows) == len({re.sub(r"\.\d+\.", ".", name) for name, _ in model.named_parameters()})


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("graph", ["qwen3", "gpt2"])
def test_memory_is_what_is_allocated(graph: str, dtype: InferenceDtype, tied: bool) -> None:
    model = GPT(replace(GRAPHS[graph], tie_embeddings=tied))
    (line,) = [line for line in memory_lines(model) if line.startswith(dtype)]
    prepare(model.to(pick_device("auto")), dtype)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    weights = {t: t.nbytes for name, t in tensors.items() if not name.startswith("rope.")}
    cache = Engine(model, Tokenizer.from_characters("ab"), max_running=1).cache
    assert f"{sum(weights.values()) / 1024:.4g} KiB" in line
    assert line.endswith(f"{(cache.k.nbytes + cache.v.nbytes) / 1024:.4g} KiB")


def test_memory_is_estimated_for_the_device_that_runs_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = GPT(GRAPHS["qwen3"])  # on the CPU, tied
    monkeypatch.setattr("gpt_core.evaluation.inspect_model.pick_device", lambda name: torch.device("cuda"))
    n = sum(p.numel() for p in model.parameters())
    for line, width in zip(memory_lines(model)[1:], (4, 2), strict=False):  # no second copy of the head
        assert f"{n * width / 1024:.4g} KiB" in line


def test_the_command_draws_plots_of_any_text(tmp_path: Path) -> None:
    """In a process where every warning, such as for a character without a glyph, is an error."""
    folder = save_model(tmp_path / "gpt2", "gpt2")
    (tmp_path / "prompt.txt").write_text("$x^2$ 知之 🙂 \x1b[31m ᚠ\n")
    command = ["-W", "error", "scripts/inspect_model.py", "--model", folder, "--top", "500"]
    command += ["--prompt", f"FILE:{tmp_path / 'prompt.txt'}", "--out", tmp_path / "out" / "pictures"]
    done = commands.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    pictures = {"attention.png", "attention_layer_1.png", "next_token.png", "positions.png"}
    assert {p.name for p in (tmp_path / "out" / "pictures").iterdir()} == pictures
    for name in pictures:
        content = (tmp_path / "out" / "pictures" / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert int.from_bytes(content[16:20]) > 300  # pixels wide
    shares = [float(share) for share in re.findall(r"^ +([\d.]+)%  ", done.stdout, re.MULTILINE)]
    assert len(shares) == Tokenizer.from_pretrained(folder).vocab_size  # fewer than --top
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=2)


def test_tokens_that_are_not_drawn_are_reported(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inspect_model(model=str(folder), prompt="know " * 300, out=str(tmp_path), layer=2)
    n_tokens = len(Tokenizer.from_pretrained(folder).encode("know " * 300))
    assert f"show the first 256 of {n_tokens} tokens" in capsys.readouterr().out
    assert (tmp_path / "attention_layer_2.png").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 0}, "^top is 0"),
        ({"layer": 3}, "^layer is 3; this model has layers 0 to 2"),
        ({"layer": -1}, "^layer is -1"),
        ({"prompt": ""}, "^The prompt has 0 tokens"),
        ({"prompt": "know " * 5000}, "^The prompt has 5002 tokens; expected 1 to the model's 512"),
        ({"prompt": "x" * 100_000}, "^The prompt has 100000 characters"),
        ({"prompt": "FILE:absent.txt"}, r"^There is no file absent\.txt"),
        ({"out": "x"}, "no learned positions to draw; give a --prompt"),
    ],
)
def test_bad_input_is_one_clear_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = save_model(tmp_path / "qwen3", "qwen3")
    with pytest.raises(InputError, match=message):
        inspect_model(model=str(folder), **options)
    assert not (tmp_path / "x").exists()


def test_without_matplotlib_values_are_printed_but_not_plotted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    inspect_model(model=str(folder), prompt="know")
    assert "entropy" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"matplotlib is not installed; .*zhizhi\[train\]"):
        inspect_model(model=str(folder), prompt="know", out=str(tmp_path))
    assert capsys.readouterr().out == ""


def test_tokens_inside_a_character_are_labelled_with_it() -> None:
    text = "a 知🙂"
    ids = GPT2.encode(text)
    labels = prompt_labels(GPT2, text, ids)
    assert len(labels) == len(ids) == 6
    assert labels[0] == "'a'"
    assert [label[-2:] for label in labels[1:4]] == ["/1", "/2", "/3"]
    assert "知" in labels[2]
    with_special = prompt_labels(GPT2, text, [GPT2.eos_id or 0, *ids, 167])
    assert with_special == ["'<|endoftext|>'", *labels, "#167"]


def test_characters_without_a_glyph_are_escaped_in_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, _ = drawable(["' a'", "\U0001d7d8\U0003fffe", "x" * 30])
    assert labels[0] == "' a'"
    assert labels[1].endswith("\\U0003fffe")
    assert len(labels[2]) < 20
    assert labels[2].endswith("…")
    monkeypatch.setattr("gpt_core.evaluation.plots.CHINESE_FONTS", ())  # a machine without a Chinese font
    assert drawable(["知"]) == (["\\u77e5"], ["DejaVu Sans"])
