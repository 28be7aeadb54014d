"""The pretrain and sample commands: configuration, complete runs, and rejected input."""

import json
import math
import os
import pickle
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, pre_tokenizers

from gpt_core.common.cli import run_command
from gpt_core.common.errors import InputError
from gpt_core.common.presets import read_preset
from gpt_core.data.batches import Windows
from gpt_core.data.prepare_data import prepare_data
from gpt_core.data.shards import ShardWriter, open_split
from gpt_core.generation.generate import generate
from gpt_core.generation.sample import SAMPLING, sample
from gpt_core.hub import run_folder
from gpt_core.model.gpt import GPT
from gpt_core.tokenizer.tokenizer import Tokenizer
from gpt_core.training.pretraining.config import PretrainConfig
from gpt_core.training.pretraining.pretrain import pretrain
from gpt_core.training.validation import evaluator
from tests import commands

TEXT = "To know what you know, and to know what you do not: that is knowledge.\n" * 60


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Character shards of a text that repeats itself."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "a.txt").write_text(TEXT)
    prepare_data(input=[str(folder / "a.txt")], tokenizer="char", out=str(folder / "data"))
    return folder / "data"


def tiny(data_dir: Path, out_dir: Path, **keys: Any) -> PretrainConfig:
    small = PretrainConfig(
        data_dir=str(data_dir), out_dir=str(out_dir), max_iters=4, eval_interval=2, warmup_iters=1, n_layer=1,
        n_head=2, n_embd=32, block_size=16, batch_size=8, device="cpu",
    )  # fmt: skip
    return replace(small, **keys)


@pytest.fixture(scope="module")
def run_dir(data_dir: Path) -> Path:
    """A run that has learnt its text."""
    out_dir = data_dir.parent / "run"
    pretrain(tiny(data_dir, out_dir, max_iters=120, eval_interval=60))
    return out_dir


def test_a_run_learns_and_leaves_a_model_folder(run_dir: Path, data_dir: Path) -> None:
    best = run_folder.best_or_latest(run_dir)
    assert best is not None
    model, tokenizer = GPT.from_pretrained(run_dir), Tokenizer.from_pretrained(run_dir)
    assert tokenizer.fingerprint == Tokenizer.from_pretrained(data_dir).fingerprint
    assert model.config == GPT.from_pretrained(best).config
    assert model.config.model_type == "qwen3"

    rows = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    losses = [row["val_loss"] for row in rows if "val_loss" in row]
    assert losses[-1] < 0.3 * math.log(tokenizer.vocab_size)
    # the evaluation covers every target of the split; recomputed here with one forward per window
    (val,) = open_split(data_dir, "val")
    ids = torch.from_numpy(val.tokens.astype(np.int64))
    total = 0.0
    for start in range(0, len(ids) - 1, 16):
        window = ids[start : start + 17]
        logits = model(window[None, :-1]).logits[0]
        total += torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
    assert min(losses) == pytest.approx(total / (len(ids) - 1), abs=1e-5)


@pytest.mark.parametrize(
    ("graph", "position", "model_type"),
    [
        ("qwen3", None, "qwen3"),
        ("llama", None, "llama"),
        ("gpt2", None, "gpt2"),
        ("qwen3", "alibi", "zhizhi"),
    ],
)
@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_every_graph_trains_and_resumes_from_its_own_folder(
    data_dir: Path,
    tmp_path: Path,
    graph: Any,
    position: Any,
    model_type: str,
    tie_embeddings: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = tiny(
        data_dir, tmp_path, graph=graph, position=position, tie_embeddings=tie_embeddings, max_iters=2
    )
    pretrain(settings)
    figures = pretrain(replace(settings, max_iters=3))
    assert "resuming" in capsys.readouterr().out
    model = GPT.from_pretrained(tmp_path)
    assert model.config.model_type == model_type
    assert evaluator(Windows(open_split(data_dir, "val"), 16))(model)["val_loss"] == pytest.approx(
        figures["val_loss"], abs=1e-6
    )
    assert pretrain(replace(settings, max_iters=3)) == figures  # nothing left to do


def test_the_command_line_overrides_the_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.yaml").write_text(
        "n_layer: 3\nlearning_rate: 3e-4\ngrad_clip: 2\nmin_lr: null\ngraph: gpt2\ntie_embeddings: no\n"
    )
    seen: list[PretrainConfig] = []
    args = ["--config", str(tmp_path / "a.yaml"), "--n_layer", "5", "--out_dir", "x=y", "--min_lr", "1e-5"]
    run_command(seen.append, config=PretrainConfig, args=args)
    run_command(seen.append, config=PretrainConfig, args=[])
    expected = PretrainConfig(
        n_layer=5,
        learning_rate=3e-4,
        grad_clip=2.0,
        graph="gpt2",
        tie_embeddings=False,
        out_dir="x=y",
        min_lr=1e-5,
    )
    assert seen == [expected, PretrainConfig()]


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ("n_layers: 3", "unknown key 'n_layers'; did you mean n_layer"),
        ("zzz: 3", "unknown key 'zzz'; the keys are out_dir"),
        ("n_layer: many", "n_layer is 'many'; .*integer"),
        ("n_layer: 2.5", "n_layer is 2.5; .*integer"),
        ("n_layer: yes", "n_layer is True; .*integer"),
        ("n_layer: 3.0", "n_layer is 3.0; .*integer"),
        ("batch_size: '12'", "batch_size is '12'; .*integer"),
        ("learning_rate: '3e-4'", "learning_rate is '3e-4'; .*number"),
        ("learning_rate: no", "learning_rate is False; .*number"),
        ("tie_embeddings: 1", "tie_embeddings is 1; .*boolean"),
        ("out_dir: 5", "out_dir is 5; .*string"),
        ('out_dir: "\\ud800"', "surrogate"),
        ("graph: gpt3", "graph is 'gpt3'; .*'qwen3', 'llama' or 'gpt2'"),
        ("max_iters: 0", "max_iters is 0; expected at least 1"),
        ("batch_ramp_iters: 5", "batch_ramp_iters is 5, but batch_size_start is not set"),
        ("- n_layer", "contains a list"),
        ("n_layer: [", "is not YAML"),
    ],
)
def test_a_bad_preset_names_the_key(tmp_path: Path, preset: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(preset)
    with pytest.raises(SystemExit) as exit_info:
        run_command(pretrain, config=PretrainConfig, args=["--config", str(tmp_path / "a.yaml")])
    text = str(exit_info.value.code)
    assert str(tmp_path / "a.yaml") in text
    assert "\n" not in text
    with pytest.raises(InputError, match=message):
        read_preset(PretrainConfig, tmp_path / "a.yaml")


def test_a_bad_command_line_exits_with_2(capfd: pytest.CaptureFixture[str]) -> None:
    for args in (["--n_layers", "3"], ["--n_layer", "many"], ["--graph", "gpt3"]):
        with pytest.raises(SystemExit) as exit_info:
            run_command(pretrain, config=PretrainConfig, args=args)
        assert exit_info.value.code == 2
        assert args[0] in capfd.readouterr().err
    with pytest.raises(SystemExit, match=r"There is no preset nowhere\.yaml"):
        run_command(pretrain, config=PretrainConfig, args=["--config", "nowhere.yaml"])


def test_the_shipped_presets_are_read() -> None:
    presets = sorted(Path("configs").glob("*.yaml"))
    assert {"shakespeare_char_cpu.yaml", "smoke.yaml"} <= {p.name for p in presets}
    nanogpt = read_preset(PretrainConfig, "configs/shakespeare_char_cpu.yaml")
    assert (nanogpt.n_layer, nanogpt.n_head, nanogpt.n_embd, nanogpt.block_size) == (4, 4, 128, 64)
    assert (nanogpt.batch_size, nanogpt.max_iters, nanogpt.graph) == (12, 2000, None)
    read_preset(PretrainConfig, "configs/smoke.yaml")


def test_data_that_does_not_fit_is_refused_before_anything_is_written(data_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "data"

    def refused(message: str, **keys: Any) -> None:
        with pytest.raises(InputError, match=message):
            pretrain(tiny(copy, tmp_path / "run", **keys))
        assert not (tmp_path / "run").exists()

    shutil.copytree(data_dir, copy)
    mine, other = Tokenizer.from_pretrained(data_dir), Tokenizer.from_characters("another vocabulary")
    refused("batch_size is 8; it must be a multiple of micro_batch_size .3", micro_batch_size=3)
    refused("n_embd is 33; expected a multiple of n_head", n_embd=33)
    other.save(copy)
    refused(f"was made with the tokenizer {mine.fingerprint}, but .* is {other.fingerprint}")
    mine.save(copy)
    refused(f"was made with the tokenizer {mine.fingerprint}, but gpt2 is", tokenizer="gpt2")

    path = copy / "train-00000.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    refused("train-00000.bin has .* bytes, expected")
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused("train-00000.bin is damaged: its checksum")
    with ShardWriter(copy, "train", 5000, mine.fingerprint) as writer:
        writer.add([1, 2, 4999])
    refused(f"holds token id 4999; the vocabulary has only {mine.vocab_size}")
    path.unlink()
    refused("has no token shards of the split 'train'")
    copy = copy / "absent"
    refused("has no token shards of the split 'train'; make them with scripts/prepare_data.py")


def test_nanogpts_characters_are_read_from_its_meta_pkl(data_dir: Path, tmp_path: Path) -> None:
    (train,), tokenizer = open_split(data_dir, "train"), Tokenizer.from_pretrained(data_dir)
    for split in ("train", "val"):
        train.tokens.astype("<u2").tofile(tmp_path / f"{split}.bin")
    stoi = {character: tokenizer.encode(character)[0] for character in set(TEXT)}
    meta = {"vocab_size": len(stoi), "stoi": stoi, "itos": {i: c for c, i in stoi.items()}}
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta))
    settings = tiny(tmp_path, tmp_path / "run", max_iters=1, warmup_iters=0, optimizer="adamw")
    pretrain(settings)
    assert Tokenizer.from_pretrained(tmp_path / "run").fingerprint == tokenizer.fingerprint
    pretrain(replace(settings, max_iters=2, tokenizer=str(data_dir)))  # the same characters
    with pytest.raises(
        InputError, match=rf"of {len(stoi)} characters, but the tokenizer of gpt2 has 50257 tokens"
    ):
        pretrain(replace(settings, tokenizer="gpt2"))


def test_a_model_with_fewer_rows_than_its_tokenizer_trains_on_the_ids_that_it_has(
    data_dir: Path, run_dir: Path, tmp_path: Path
) -> None:
    tokenizer, trained = Tokenizer.from_pretrained(data_dir), GPT.from_pretrained(run_dir)
    last = tokenizer.vocab_size - 1
    small = GPT(replace(trained.config, vocab_size=last))
    small.save_pretrained(tmp_path / "small")
    tokenizer.save(tmp_path / "small")
    for name, ids in (("fits", [1, 2, 3, last - 1] * 20), ("does not", [1, 2, 3, last] * 20)):
        (tmp_path / name).mkdir()
        for split in ("train", "val"):
            with ShardWriter(tmp_path / name, split, tokenizer.vocab_size, tokenizer.fingerprint) as writer:
                writer.add(ids)
        tokenizer.save(tmp_path / name)
    settings = tiny(
        tmp_path / "fits", tmp_path / "run", init_from=str(tmp_path / "small"), n_layer=None, n_head=None, n_embd=None,
        max_iters=1, warmup_iters=0, optimizer="adamw",
    )  # fmt: skip
    pretrain(settings)
    with pytest.raises(InputError, match=f"holds token id {last}; the vocabulary has only {last} tokens"):
        pretrain(replace(settings, data_dir=str(tmp_path / "does not"), out_dir=str(tmp_path / "other")))


@torch.no_grad()
def test_an_evaluation_can_be_limited_to_windows_spread_over_the_split(data_dir: Path, run_dir: Path) -> None:
    windows = Windows(open_split(data_dir, "val"), 16)
    model, n = GPT.from_pretrained(run_dir), len(windows)
    assert n > 8
    losses = []
    for i in (0, n - 1):
        ids, targets = windows.rows([i])
        out = model(ids, targets=targets, logits=False)
        losses.append((float(out.loss_sum), int(out.n_targets)))
    expected = sum(loss for loss, _ in losses) / sum(count for _, count in losses)
    assert evaluator(windows, eval_tokens=32)(model)["val_loss"] == pytest.approx(expected, abs=1e-6)
    whole = evaluator(windows)(model)["val_loss"]
    assert evaluator(windows, eval_tokens=10**9)(model)["val_loss"] == whole
    assert evaluator(windows, eval_tokens=1)(model)["val_loss"] == pytest.approx(
        losses[0][0] / losses[0][1], abs=1e-6
    )


def test_nanogpts_data_trains_with_a_named_tokenizer(tmp_path: Path) -> None:
    ids = np.array(Tokenizer.from_pretrained("gpt2").encode(TEXT[:2000]), dtype=np.uint16)
    for split in ("train", "val"):
        ids.tofile(tmp_path / f"{split}.bin")
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        pretrain(tiny(tmp_path, tmp_path / "run"))
    figures = pretrain(tiny(tmp_path, tmp_path / "run", tokenizer="gpt2", n_embd=16, max_iters=2))
    assert figures["val_loss"] < math.log(50257)
    assert Tokenizer.from_pretrained(tmp_path / "run").encode("know") == Tokenizer.from_pretrained(
        "gpt2"
    ).encode("know")


def test_another_models_checkpoint_is_not_resumed(data_dir: Path, tmp_path: Path) -> None:
    pretrain(tiny(data_dir, tmp_path, max_iters=1, warmup_iters=0))
    before = sorted(tmp_path.rglob("*"))
    for keys, message in (
        ({"n_layer": 2}, "step-1 has n_layer = 1, but this run has 2"),
        ({"graph": "llama"}, "has qk_norm = True, but this run has False"),
        ({"optimizer": "adamw"}, r"Muon's state of blocks\.0"),
        ({"seed": 5}, "seed = 1337, but this run has 5"),
    ):
        with pytest.raises(InputError, match=message):
            pretrain(tiny(data_dir, tmp_path, **keys))
        assert sorted(tmp_path.rglob("*")) == before


def test_a_checkpoint_of_another_vocabulary_is_not_resumed(data_dir: Path, tmp_path: Path) -> None:
    pretrain(tiny(data_dir, tmp_path / "run", max_iters=1, warmup_iters=0))
    (tmp_path / "a.txt").write_text(TEXT.replace("k", "K"))  # another vocabulary of the same size
    prepare_data(input=[str(tmp_path / "a.txt")], tokenizer="char", out=str(tmp_path / "data"))
    one, two = (Tokenizer.from_pretrained(folder).fingerprint for folder in (data_dir, tmp_path / "data"))
    with pytest.raises(InputError, match=f"trained with the tokenizer {one}, but the data has {two}"):
        pretrain(tiny(tmp_path / "data", tmp_path / "run"))


def test_ctrl_c_saves_and_ends_the_process_by_the_signal(data_dir: Path, tmp_path: Path) -> None:
    shape = ["--n_layer", "1", "--n_head", "2", "--n_embd", "32", "--block_size", "16", "--batch_size", "4"]
    keys = ["--log_interval", "1", "--max_iters", "1000000", "--eval_interval", "1000000"]
    process = commands.Popen(
        ["scripts/pretrain.py", "--data_dir", data_dir, "--out_dir", tmp_path, *shape, *keys],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    log = tmp_path / "log.jsonl"
    for _ in range(600):
        if log.exists() and log.read_text().count("\n") >= 3:
            break
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert errors == "pretrain.py: stopped\n"
    path = run_folder.latest(tmp_path)
    assert path is not None
    assert path.name == f"step-{json.loads(log.read_text().splitlines()[-1])['step']}"


def test_sampling_is_reproducible_and_can_exceed_the_context(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def say(num_samples: int = 1, **options: Any) -> str:
        sampling = replace(SAMPLING, **options)
        sample(model=str(run_dir), prompt="To know", num_samples=num_samples, sampling=sampling, device="cpu")
        return capsys.readouterr().out

    text = say(max_new_tokens=100, seed=3)
    assert text.startswith("To know")
    assert len(text) == len("To know") + 100 + 1  # the context is 16 tokens
    assert text == say(max_new_tokens=100, seed=3)
    assert text != say(max_new_tokens=100, seed=4)
    two = say(max_new_tokens=20, seed=3, num_samples=2, temperature=1.5).split("---------------\n")
    assert len(two) == 2
    assert two[0] != two[1]
    greedy = say(max_new_tokens=60, temperature=0)
    assert set(greedy.split()[:-1]) <= set(
        TEXT.split()
    )  # only words of the training text, also where the context slides


def test_a_prompt_from_a_file(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompt.txt").write_text("know what\n")
    one = replace(SAMPLING, max_new_tokens=1)
    sample(model=str(run_dir), prompt=f"FILE:{tmp_path / 'prompt.txt'}", sampling=one, device="cpu")
    assert capsys.readouterr().out.startswith("know what\n")
    with pytest.raises(InputError, match=r"There is no file nowhere\.txt"):
        sample(model=str(run_dir), prompt="FILE:nowhere.txt")
    with pytest.raises(InputError, match="num_samples is 0"):
        sample(model=str(run_dir), num_samples=0)
    with pytest.raises(InputError, match="'#'"):
        sample(model=str(run_dir), prompt="#", device="cpu")
    with pytest.raises(InputError, match="The prompt has 71 tokens"):
        sample(model=str(run_dir), prompt=TEXT[:71], device="cpu")
    assert capsys.readouterr().out == ""  # a rejected prompt is not printed


def test_a_context_that_ends_inside_a_character_loses_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a byte vocabulary 🙂 takes four tokens, so contexts of 10 tokens often end inside a character."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = RustTokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer, backend.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    Tokenizer(backend).save(tmp_path / "bytes")
    (tmp_path / "a.txt").write_text("🙂🙃" * 300)
    prepare_data(
        input=[str(tmp_path / "a.txt")], out=str(tmp_path / "data"), tokenizer=str(tmp_path / "bytes")
    )
    pretrain(tiny(tmp_path / "data", tmp_path / "run", block_size=10, max_iters=60, eval_interval=60))
    capsys.readouterr()
    greedy = replace(SAMPLING, max_new_tokens=60, temperature=0)
    sample(model=str(tmp_path / "run"), prompt="🙂", sampling=greedy, device="cpu")
    text = capsys.readouterr().out.strip()
    assert set(text) <= {"🙂", "🙃"}
    assert len(text) == 1 + 60 // 4


def test_ids_of_the_padded_vocabulary_are_never_generated(data_dir: Path, tmp_path: Path) -> None:
    settings = tiny(data_dir, tmp_path, vocab_multiple=64, max_iters=2)
    pretrain(settings)
    model, tokenizer = GPT.from_pretrained(tmp_path), Tokenizer.from_pretrained(tmp_path)
    assert model.config.vocab_size == 64
    assert tokenizer.vocab_size < 30
    with torch.no_grad():
        model.wte.weight[tokenizer.vocab_size :] += 1.0  # larger logits than those of the trained tokens
    text = generate(model, tokenizer, "To", max_new_tokens=12, temperature=2.0, seed=0)
    assert len(text) == 12
    assert set(text) <= set(TEXT)


def test_fine_tuning_keeps_the_models_shape(data_dir: Path, run_dir: Path, tmp_path: Path) -> None:
    settings = tiny(
        data_dir, tmp_path / "tuned", init_from=str(run_dir), n_layer=None, n_head=None, n_embd=None, block_size=8,
        learning_rate=1e-6, muon_learning_rate=1e-6, max_iters=2,
    )  # fmt: skip
    tuned = pretrain(settings)
    before = pretrain(replace(settings, eval_only=True))
    assert tuned["val_loss"] == pytest.approx(
        before["val_loss"], abs=1e-3
    )  # it started from the run's weights
    assert GPT.from_pretrained(tmp_path / "tuned").config == GPT.from_pretrained(run_dir).config
    assert pretrain(replace(settings, max_iters=3))["val_loss"] == pytest.approx(tuned["val_loss"], abs=1e-3)

    fresh = replace(settings, out_dir=str(tmp_path / "other"))
    for keys, message in (
        ({"n_layer": 3}, f"n_layer is 3, but {run_dir}.* has 1; fine-tuning cannot change the shape"),
        ({"block_size": 32}, "block_size is 32, but .* has 16"),
        ({"graph": "gpt2"}, "graph is gpt2, but .* has qwen3"),
        ({"init_from": str(tmp_path)}, str(tmp_path)),
    ):
        with pytest.raises(InputError, match=message):
            pretrain(replace(fresh, **keys))
    (tmp_path / "b.txt").write_text("Other letters: zyxwvu 0123456789.\n" * 60)
    prepare_data(input=[str(tmp_path / "b.txt")], tokenizer="char", out=str(tmp_path / "data"))
    with pytest.raises(InputError, match="was trained with the tokenizer"):
        pretrain(replace(fresh, data_dir=str(tmp_path / "data")))
    assert not (tmp_path / "other").exists()


def test_an_untrained_model_must_start_near_the_uniform_loss(data_dir: Path, tmp_path: Path) -> None:
    """With tied embeddings of width 1024 and zero-initialised blocks, the model predicts its input token."""
    settings = tiny(data_dir, tmp_path / "run", n_embd=1024, n_inner=8, init="zero")
    with pytest.raises(InputError, match=r"untrained model has a loss of .* set --tie_embeddings False"):
        pretrain(settings)
    assert not (tmp_path / "run").exists()
    pretrain(replace(settings, tie_embeddings=False, max_iters=2))


def test_samples_are_printed_and_do_not_change_the_training(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tiny(data_dir, tmp_path / "quiet", dropout=0.2)
    quiet = pretrain(settings)
    capsys.readouterr()
    talking = pretrain(
        replace(settings, out_dir=str(tmp_path / "talking"), sample_tokens=9, sample_prompt="To know")
    )
    assert talking["val_loss"] == quiet["val_loss"]
    assert capsys.readouterr().out.count("a sample: To know") == 2


@pytest.mark.parametrize(
    ("eval_tokens", "compiler"),
    [(128, "/nowhere/g++"), *(pytest.param(n, "g++", marks=pytest.mark.slow) for n in (128, 0))],
)
def test_the_blocks_are_compiled_or_one_warning_says_why_not(
    data_dir: Path, tmp_path: Path, eval_tokens: int, compiler: str
) -> None:
    """Runs in separate processes, because torch.compile changes global state.

    The whole validation split ends in a smaller batch, for which the blocks are compiled again.
    """
    keys = {
        "data_dir": data_dir, "max_iters": 4, "eval_interval": 4, "warmup_iters": 1, "n_layer": 1, "n_head": 2,
        "n_embd": 32, "block_size": 16, "batch_size": 8, "device": "cpu", "dtype": "float32", "threads": 1,
        "log_interval": 1, "dropout": 0.1, "eval_tokens": eval_tokens,
    }  # fmt: skip

    def losses(name: str, how: str) -> tuple[list[float], str]:
        given = [f"--{k}={v}" for k, v in (keys | {"out_dir": tmp_path / name, "compile": how}).items()]
        environment = {"CXX": compiler, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
        environment["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
        done = commands.run(
            ["scripts/pretrain.py", *given],
            capture_output=True,
            text=True,
            env=os.environ | (environment if how == "on" else {}),
        )
        assert done.returncode == 0, done.stderr
        rows = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        return [row["loss"] for row in rows if "loss" in row], done.stderr

    eager, _ = losses("eager", "off")
    compiled, said = losses("compiled", "on")
    if shutil.which(compiler):
        assert compiled == pytest.approx(eager, abs=1e-3)
        assert "warning" not in said
    else:
        assert compiled == eager
        assert said.count("warning: torch.compile failed, training goes on without it") == 1
