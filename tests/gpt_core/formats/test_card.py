"""Model cards: their contents, no secrets in them, and cards written by users are not overwritten."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from gpt_core import GPT, GPTConfig
from gpt_core.data.prepare_data import prepare_data
from gpt_core.formats.card import MARK, Card, command_line, derived, read_card, with_command
from gpt_core.formats.export import export_gguf, export_hf
from gpt_core.hub import run_folder
from gpt_core.hub.locate import KNOWN_MODELS
from gpt_core.training.pretraining.config import PretrainConfig
from gpt_core.training.pretraining.pretrain import pretrain
from tests import commands
from tests.tiny_models import TEXTS, save_model

ROOT = Path(__file__).parents[3]
KEYS = {
    "data_dir": "data", "n_layer": 1, "n_head": 1, "n_embd": 16, "block_size": 16, "batch_size": 2, "warmup_iters": 1,
    "max_iters": 2, "eval_interval": 2, "threads": 1, "dtype": "float32", "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A folder in which a short training was run from the command line."""
    root = tmp_path_factory.mktemp("run")
    save_model(root / "tokenizer", "qwen3")
    (root / "text.txt").write_text("\n".join(TEXTS) * 20)
    prepare_data(input=[str(root / "text.txt")], tokenizer=str(root / "tokenizer"), out=str(root / "data"))
    (root / "scripts").symlink_to(ROOT / "scripts")
    keys = [word for key, value in KEYS.items() for word in (f"--{key}", str(value))]
    command = ["scripts/pretrain.py", *keys, "--out_dir", "out", "--sample_prompt", "it's\n## 知"]
    env = os.environ | {"MY_TOKEN": "hf_secret"}
    done = commands.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return root


def test_the_card_of_a_checkpoint_says_how_it_was_made(run):
    folder = run / "out" / "step-2"
    text = (folder / "README.md").read_text()
    head = ModelCard(text).data
    assert (head.library_name, head.tags, head.license) == ("transformers", ["zhizhi", "qwen3"], None)
    sections = read_card(folder).sections
    assert list(sections) == ["Shape", "Data", "Training", "Scores", "Made with", "Licence"]
    n_parameters = sum(p.numel() for p in GPT.from_pretrained(folder).parameters())
    assert f"| parameters | {n_parameters:,}, in float32 |" in sections["Shape"]
    state = json.loads((folder / "state.json").read_text())
    assert f"| val_loss | {state['figures']['val_loss']:.4f} |" in sections["Scores"]
    assert "activation_max" not in text
    assert "`data`: " in sections["Data"]
    assert "After 2 steps." in sections["Training"]
    assert "max_iters: 2" in sections["Training"]
    command = sections["Made with"].splitlines()[1]
    again = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, text=True, check=True
    )
    words = again.stdout.split("\0")[:-1]
    assert words[:4] == ["python", "scripts/pretrain.py", "--data_dir", "data"]
    assert words[-1] == "it's\n## 知"
    assert sections["Licence"] == "Of the weights: not stated."
    for secret in ("hf_secret", str(ROOT), str(run), str(Path.home())):
        assert secret not in text


def test_an_edited_card_is_kept_and_the_checkpoint_stays_valid(run, tmp_path, monkeypatch):
    monkeypatch.chdir(run)
    folder = run / "out" / "step-2"
    card = (folder / "README.md").read_text()
    own = card.replace(MARK, "").replace("tags:", "license: mit\ntags:")
    (folder / "README.md").write_text(own)
    assert run_folder.latest(run / "out") == folder
    assert "README.md" not in run_folder.load_state(folder)["manifest"]
    GPT.from_pretrained(folder).save_pretrained(folder)
    assert (folder / "README.md").read_text() == own

    pretrain(PretrainConfig(**KEYS, out_dir=str(tmp_path / "fine"), init_from="out"))
    fine = read_card(tmp_path / "fine" / "step-2")
    assert fine.licence == "mit"
    assert "From `out`" in fine.sections["Training"]
    (folder / "README.md").write_text(card)

    pretrain(PretrainConfig(**KEYS | {"max_iters": 3}, out_dir="out"))
    commands = read_card(run / "out" / "step-3").sections["Made with"]
    assert commands == read_card(folder).sections["Made with"]  # resumed from Python, not by a command
    assert "After 3 steps." in read_card(run / "out" / "step-3").sections["Training"]


def test_exports_keep_history_and_licence(run, tmp_path, monkeypatch):
    folder = run / "out" / "step-2"
    (folder / "LICENSE").write_text("Do as you like.\n")
    monkeypatch.setattr(sys, "argv", ["scripts/export.py", "--model", "out"])
    card = derived("out", folder)
    export_hf(folder, tmp_path / "hf", "bfloat16", card)
    file = export_gguf(folder, tmp_path / "gguf", "float16", card)
    for name, library, numbers in (("hf", "transformers", "bfloat16"), ("gguf", "gguf", "float16")):
        exported = read_card(tmp_path / name)
        assert exported.head["library_name"] == library
        assert exported.head["license"] == "other"
        assert exported.head["license_link"] == "LICENSE"
        assert exported.licence_text == "Do as you like.\n"
        assert f"in {numbers} |" in exported.sections["Shape"]
        assert exported.sections["Scores"] == read_card(folder).sections["Scores"]
        made = exported.sections["Made with"].splitlines()
        assert made[1].startswith("python scripts/pretrain.py")
        assert made[2:] == ["python scripts/export.py --model out", "```"]
    assert file.parent == tmp_path / "gguf"
    (folder / "LICENSE").unlink()


def test_a_folder_of_licences_is_no_licence_text(tmp_path):
    folder = save_model(tmp_path / "model", "qwen3")
    (folder / "LICENSES").mkdir()
    assert derived("model", folder).licence_text is None
    (folder / "LICENSE.txt").write_text("Do as you like.")
    assert derived("model", folder).licence_text == "Do as you like."
    export_hf(folder, tmp_path / "out", card=derived("model", folder))
    assert (tmp_path / "out" / "LICENSE").read_text() == "Do as you like."


def test_known_models_and_those_of_the_hub_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("ZHIZHI_CACHE", str(tmp_path))
    cached = save_model(tmp_path / "models" / "some" / "model", "gpt2")
    (cached / "README.md").write_text(
        "---\nlicense: gemma\nbase_model: some/base\n---\n# Their own card\n\n## Data\n"
    )
    card = derived("some/model", cached)
    assert card == Card({"license": "gemma", "base_model": "some/model"})
    name = "smollm2-135m-instruct"
    known = derived(name, tmp_path / "models" / name)
    assert known.head == {"license": "apache-2.0", "base_model": KNOWN_MODELS[name].hub}
    assert derived(name, tmp_path / name).head == {}  # a folder of the same name is another model


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe", b"---\n[\n---\n", b"---\n- 1\n---\n", b"---\nno end", b"", b"---\nlicense: 3\n---\n"],
)
def test_an_unreadable_card_is_ignored_and_kept(content, tmp_path):
    folder = save_model(tmp_path / "model", "gpt2")
    (folder / "README.md").write_bytes(content)
    assert read_card(folder).licence is None
    assert read_card(folder).sections == {}
    GPT.from_pretrained(folder).save_pretrained(folder)
    assert (folder / "README.md").read_bytes() == content


def test_only_commands_of_this_project_are_written(monkeypatch):
    words = ["--model", "a b", "--local_rank=0", "--prompt", "知\t'x'"]
    monkeypatch.setattr(sys, "argv", ["/home/me/zhizhi/scripts/export.py", *words])
    assert command_line() == "python scripts/export.py --model 'a b' --prompt $'\\u77e5\\t\\'x\\''"
    assert shlex.split("python scripts/export.py --model 'a b'")[-1] == "a b"
    monkeypatch.setattr(sys, "argv", ["zhizhi export", "--to", "hf"])
    assert command_line() == "zhizhi export --to hf"
    once = with_command(Card())
    assert with_command(once) == once
    for other in ("/usr/lib/python3/pytest/__main__.py", "", "-c", "/home/me/notebook.py"):
        monkeypatch.setattr(sys, "argv", [other, "--secret"])
        assert command_line() is None
        assert with_command(once) == once
    monkeypatch.setattr(sys, "argv", ["scripts/pretrain.py"])
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert command_line() == "torchrun --nproc_per_node 4 scripts/pretrain.py"


def test_a_new_model_has_a_card_of_its_shape(tmp_path):
    GPT(GPTConfig.gpt2(n_layer=1, n_head=2, n_embd=8, vocab_size=70)).save_pretrained(tmp_path)
    card = read_card(tmp_path)
    assert "| architecture | gpt2 |" in card.sections["Shape"]
    assert list(card.sections) == ["Shape", "Licence"]
