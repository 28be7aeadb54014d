"""Training embedders: improvement, bit-exact resuming, and refused configurations."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from embed.encoding.encoder import Encoder
from embed.training import train as module
from embed.training.config import TrainEmbedderConfig
from embed.training.step import EmbeddingLoss
from embed.training.train import train_embedder
from gpt_core.common.errors import InputError
from gpt_core.data.prepare_data import prepare_data
from gpt_core.hub import run_folder
from gpt_core.model.gpt import GPT
from gpt_core.tokenizer.tokenizer import Tokenizer
from tests import commands
from tests.tiny_models import TEXTS, reference_model, save_model

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": "."}
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def write_pairs(path: Path, n: int, seed: int = 0) -> Path:
    """Questions about made-up words, each with a sentence that contains the word and one that does not."""
    rng = random.Random(seed)
    words = ["".join(rng.sample(LETTERS, 5)) for _ in range(n)]
    rows = [
        {"query": f"{a}?", "positive": f"the {a} is {i}", "negative": f"the {b} is {i}"}
        for i, (a, b) in enumerate(zip(words, words[1:] + words[:1], strict=True))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    save_model(folder / "qwen3", "qwen3")
    save_model(folder / "gpt2", "gpt2")
    write_pairs(folder / "pairs.jsonl", 60)
    write_pairs(folder / "more.jsonl", 30, seed=1)
    reference_model(folder / "qwen3", "mean").save(str(folder / "teacher"), create_model_card=False)
    return folder


@pytest.fixture
def config(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TrainEmbedderConfig]:
    monkeypatch.setenv("ZHIZHI_CACHE", str(tmp_path / "cache"))
    threads = torch.get_num_threads()
    yield TrainEmbedderConfig(
        init_from=str(folder / "qwen3"), data=(str(folder / "pairs.jsonl"),), out_dir=str(tmp_path / "run"),
        max_iters=4, eval_interval=2, log_interval=1, warmup_iters=0, batch_size=8, max_tokens=24, learning_rate=1e-2,
        device="cpu", dtype="float32", threads=1,
    )  # fmt: skip
    torch.set_num_threads(threads)


def newest(config: TrainEmbedderConfig) -> Path:
    found = run_folder.latest(config.out_dir)
    assert found is not None
    return found


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return GPT.from_pretrained(folder).state_dict()


def test_training_on_pairs_improves_an_embedder_that_sentence_transformers_opens(config, capsys):
    config = replace(
        config, max_iters=30, eval_interval=15, query_prompt="find: ", dimension=16, matryoshka=(8,)
    )
    figures = train_embedder(config)
    said = capsys.readouterr().out
    before = json.loads(Path(config.out_dir, "before.json").read_text())
    assert figures["val_loss"] < before["val_loss"] - 0.2
    assert figures["nDCG@10"] > before["nDCG@10"] + 0.1
    assert f"nDCG@10: {before['nDCG@10']:.4f} before, " in said
    assert "pairs: 54 examples, 100.0% of the batches" in said
    best = run_folder.best_or_latest(config.out_dir)
    assert said.endswith(f"best checkpoint (an embedder's folder): {best}\n")
    ours, theirs = Encoder.from_pretrained(best), SentenceTransformer(str(best), device="cpu")
    assert ours.config.query_prompt == "find: "
    np.testing.assert_allclose(ours.encode_query(TEXTS), theirs.encode_query(TEXTS), atol=2e-6)
    np.testing.assert_allclose(ours.encode_document(TEXTS), theirs.encode_document(TEXTS), atol=2e-6)
    assert ours.dimension == 16
    assert ours.max_tokens == 24


@pytest.fixture(scope="module")
def driven(folder: Path) -> dict[str, Any]:
    driver = Path(__file__).with_name("training_driver.py")
    paths = [folder / name for name in ("qwen3", "pairs.jsonl", "more.jsonl", "driven")]
    done = commands.run([driver, *paths], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "torn" not in done.stderr
    return json.loads(done.stdout) | {"said": done.stderr}


@pytest.mark.parametrize("name", ["two sets", "lora"])
def test_a_killed_and_resumed_run_ends_bit_identical(driven, folder, name):
    assert driven[f"{name} straight"] == [0]
    *killed, last = driven[f"{name} killed"]
    assert set(killed) == {-9}, driven["said"]
    assert last == 0
    one, other = (folder / "driven" / f"{name} {how}" / "step-6" for how in ("straight", "killed"))
    for file in ("model.safetensors", "training.safetensors", "optimizer.safetensors"):
        assert (one / file).read_bytes() == (other / file).read_bytes(), file
    if name == "lora":
        dense = [path / "2_Dense" / "model.safetensors" for path in (one, other)]
        assert dense[0].read_bytes() == dense[1].read_bytes()
    figures = [run_folder.load_state(path)["figures"] for path in (one, other)]
    assert figures[0] == figures[1]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_resuming_on_two_then_one_then_two_ranks_equals_one_process(driven, folder, parallel):
    for name in (parallel, f"{parallel} alone", f"{parallel} again", "one"):
        assert set(driven[name]) == {0}, driven["said"]
    one, two = (
        load_file(folder / "driven" / name / "step-6" / "model.safetensors") for name in ("one", parallel)
    )
    assert max(float((two[name] - w).abs().max()) for name, w in one.items()) < 1e-4
    rows = [
        [json.loads(line) for line in (folder / "driven" / name / "log.jsonl").read_text().splitlines()]
        for name in ("one", parallel)
    ]
    losses, shared = ([row["loss"] for row in run if "loss" in row] for run in rows)
    np.testing.assert_allclose(losses, shared, atol=1e-4)
    assert len(losses) == 6


def test_torchrun_starts_the_script(config, folder):
    script = str(Path("scripts/train_embedder.py").resolve())
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", script]
    keys = ("init_from", "out_dir", "batch_size", "max_tokens", "device", "dtype", "threads", "warmup_iters")
    options = [f"--{key}={getattr(config, key)}" for key in keys]
    command = [*torchrun, *options, "--max_iters=2", "--data", *config.data]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best checkpoint (an embedder's folder)") == 1
    assert newest(config).name == "step-2"


def interrupt(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Make the `at`-th step raise a ConnectionError."""
    counter, real = [at], EmbeddingLoss.__call__

    def call(*args: Any) -> Any:
        counter[0] -= 1
        if counter[0] == 0:
            raise ConnectionError("gone")
        return real(*args)

    monkeypatch.setattr(EmbeddingLoss, "__call__", call)


@pytest.fixture(scope="module")
def shards(folder: Path) -> str:
    (folder / "text.txt").write_text("\n".join(TEXTS * 20))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepare_data(input=["text.txt"], tokenizer=str(folder / "qwen3"), out=str(folder / "shards"))
    return str(folder / "shards")


def test_teacher_projection_and_language_model_resume_bit_exactly(config, folder, shards, monkeypatch):
    config = replace(
        config, teacher=str(folder / "teacher"), similarity_weight=0.5, dimension=12, lm_weight=0.5, lm_batch_size=2,
        lm_data_dir=shards, lm_block_size=32, pooling_layer=2, dropout=0.1, false_negative_margin=0.0,
        guide=str(folder / "teacher"),
    )  # fmt: skip
    straight = replace(config, out_dir=config.out_dir + "-straight")
    train_embedder(straight)
    with monkeypatch.context() as patch:
        interrupt(patch, 4)
        with pytest.raises(ConnectionError):
            train_embedder(config)
    assert newest(config).name == "step-2"
    train_embedder(config)
    for file in ("model.safetensors", "training.safetensors", "optimizer.safetensors"):
        assert (newest(config) / file).read_bytes() == (newest(straight) / file).read_bytes(), file


def test_a_teacher_of_another_dimension_gets_a_reported_projection_that_is_not_saved_with_the_embedder(
    config, folder, capsys
):
    teacher = str(folder / "teacher")
    train_embedder(replace(config, teacher=teacher, dimension=12, contrastive_weight=0.0))
    said = capsys.readouterr().out
    assert f"{teacher} has vectors of 32 dimensions: a projection" in said
    assert load_file(newest(config) / "training.safetensors")["projection"].shape == (32, 12)
    assert Encoder.from_pretrained(newest(config)).dimension == 12
    assert SentenceTransformer(str(newest(config)), device="cpu").encode("a").shape == (12,)


def test_distillation_alone_approaches_the_teacher(config, folder, tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"{a}{b} is a word"}) + "\n" for a in LETTERS for b in "xyz"))
    teacher = SentenceTransformer(str(folder / "teacher"), device="cpu")
    config = replace(
        config, data=(str(path),), init_from=str(folder / "gpt2"), teacher=str(folder / "teacher"), max_iters=30,
        eval_interval=30,
    )  # fmt: skip
    figures = train_embedder(config)
    before = json.loads(Path(config.out_dir, "before.json").read_text())
    assert "nDCG@10" not in figures
    assert figures["val_loss"] < before["val_loss"] / 2
    texts = ["zx is a word", "qy is a word"]
    ours = Encoder.from_pretrained(newest(config)).encode(texts)
    theirs = teacher.encode_document(texts, normalize_embeddings=True)
    assert 1 - (ours * theirs).sum(axis=1).mean() < 2 * figures["val_loss"]


def test_the_language_model_loss_improves_together_with_retrieval(config, shards, folder):
    config = replace(
        config,
        max_iters=20,
        eval_interval=20,
        lm_weight=1.0,
        lm_data_dir=shards,
        lm_block_size=32,
        pooling_layer=1,
    )
    figures = train_embedder(config)
    before = json.loads(Path(config.out_dir, "before.json").read_text())
    assert figures["lm_loss"] < before["lm_loss"] - 0.5
    assert figures["nDCG@10"] > before["nDCG@10"]
    saved, initial = weights(newest(config)), weights(folder / "qwen3")
    # including the blocks above the pooled layer
    assert all(not torch.equal(saved[name], initial[name]) for name in initial)
    encoder = Encoder.from_pretrained(newest(config))
    assert (encoder.config.pooling.layer, encoder.config.pooling.final_norm) == (1, True)


@pytest.mark.parametrize("trainable", ["full", "last-k", "lora", "bitfit"])
def test_untrained_parameters_stay_bit_identical(config, folder, trainable):
    config = replace(config, init_from=str(folder / "gpt2"), trainable=trainable, last_k=1, pooling_layer=2)
    config = replace(config, lora_rank=2, max_iters=2, weight_decay=0.1)
    train_embedder(config)
    saved, initial = weights(newest(config)), weights(folder / "gpt2")
    changed = {name for name in initial if not torch.equal(saved[name], initial[name])}
    norms = {"norm.weight", "norm.bias"}
    below = {name for name in initial if name.startswith(("blocks.0.", "blocks.1."))}
    # The key bias adds the same to all attention logits of a query: its gradient is zero up to rounding.
    untouched = {name for name in below if name.endswith("attn.k.bias")}
    expected = {
        "full": below | norms | {"wte.weight", "wpe.weight"},
        "last-k": {name for name in below if name.startswith("blocks.1.")} | norms,
        "lora": {name for name in below if name.endswith("weight") and "norm" not in name},
        "bitfit": {name for name in below if name.endswith("bias")},
    }[trainable]
    assert changed | untouched == expected | untouched
    optimizer = load_file(newest(config) / "optimizer.safetensors")
    n_moments = sum(t.numel() for name, t in optimizer.items() if "exp_avg" in name)
    assert n_moments < 3 * sum(p.numel() for p in initial.values())


def test_a_batch_larger_than_the_data_repeats_examples(config):
    figures = train_embedder(replace(config, batch_size=120, max_iters=2, eval_interval=2))
    assert np.isfinite(figures["val_loss"])


def test_a_mixed_run_samples_each_dataset_by_its_weight_and_reports_each(config, folder, capsys):
    data = (str(folder / "pairs.jsonl"), str(folder / "more.jsonl"))
    figures = train_embedder(replace(config, data=data, weights=(1.0, 3.0), train_tokens=4))
    said = capsys.readouterr().out
    assert " texts were truncated to 4 tokens, repetitions and evaluations included\n" in said
    assert "pairs: 54 examples, 25.0% of the batches" in said
    assert "more: 27 examples, 75.0% of the batches" in said
    assert {"loss pairs", "loss more", "nDCG@10 pairs", "nDCG@10 more"} < set(figures)
    assert run_folder.load_state(newest(config))["data"]["taken"] == [1, 3]


def test_training_can_start_from_a_trained_embedder(config, folder):
    """A new run starts from a saved embedder, including its dense layer and prompts."""
    train_embedder(replace(config, dimension=16, query_prompt="q: "))
    again = replace(
        config, init_from=str(newest(config)), out_dir=config.out_dir + "-again", learning_rate=1e-12
    )
    train_embedder(again)
    first, second = (Encoder.from_pretrained(newest(c)) for c in (config, again))
    assert second.config == first.config
    np.testing.assert_allclose(second.encode_query(TEXTS), first.encode_query(TEXTS), atol=1e-5)


BAD = {
    "no data": ({"data": ()}, "data is empty; give --data FILE"),
    "missing file": ({"data": ("nowhere.jsonl",)}, "nowhere.jsonl does not exist"),
    "missing column": ({"query_column": "ask"}, "has no column ask; it has 'query', 'positive'"),
    "bitfit without biases": ({"trainable": "bitfit"}, "has no biases to train; give lora, last-k or full"),
    "last_k beyond the model": ({"trainable": "last-k", "last_k": 4}, "last_k is 4; expected at most 3"),
    "n_layer beyond the model": ({"n_layer": 4}, "n_layer is 4, but .* has 3 blocks"),
    "matryoshka beyond the dimension": ({"matryoshka": (8, 33)}, "contains 33, but the vectors have 32 dimensions"),
    "pooling_layer beyond the model": ({"pooling_layer": 4}, "pooling_layer is 4, but .* has 3 blocks"),
    "wrong number of weights": ({"weights": (1.0, 2.0)}, "weights has 2 numbers for 1 datasets"),
    "missing model": ({"init_from": "nowhere/at/all"}, "nowhere/at/all"),
    "missing shards": ({"lm_weight": 1.0, "lm_data_dir": "nowhere"}, "nowhere"),
    "empty loss": ({"contrastive_weight": 0.0}, "so the loss is empty; name a teacher"),
    "batch_size 1": ({"batch_size": 1}, "batch_size is 1; a contrastive loss needs at least 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_configurations_are_refused_before_anything_is_written(config, name):
    keys, reason = BAD[name]
    with pytest.raises(InputError, match=reason):
        train_embedder(replace(config, **keys))
    assert not Path(config.out_dir).exists() or not list(Path(config.out_dir).iterdir())


def test_a_damaged_shard_is_refused_before_anything_is_written(config, shards, tmp_path):
    copy = shutil.copytree(shards, tmp_path / "damaged")
    shard = next(copy.glob("train-*.bin"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(InputError, match=r"train-.*\.bin"):
        train_embedder(replace(config, lm_weight=1.0, lm_data_dir=str(copy)))
    assert not Path(config.out_dir).exists() or not list(Path(config.out_dir).iterdir())


def test_unusable_pairs_are_counted_and_dropped(config, folder, tmp_path, capsys):
    path = tmp_path / "pairs.jsonl"
    odd = [{"query": "", "positive": "a"}, {"query": "b", "positive": " "}, {"query": "c", "positive": "c"}]
    path.write_text((folder / "pairs.jsonl").read_text() + "".join(json.dumps(row) + "\n" for row in odd))
    train_embedder(replace(config, data=(str(path),), max_iters=1))
    assert "3 of 63 pairs dropped: 2 with an empty side and 1 with equal sides" in capsys.readouterr().err
    path.write_text("".join(json.dumps(row) + "\n" for row in odd))
    with pytest.raises(InputError, match=r"pairs\.jsonl"):
        train_embedder(replace(config, data=(str(path),)))


def test_texts_without_positives_need_a_teacher(config, tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(60)))
    with pytest.raises(
        InputError, match=r"texts\.jsonl contains texts without positives, .*; name a teacher, or give pairs"
    ):
        train_embedder(replace(config, data=(str(path),)))


def test_unknown_ids_in_judgements_are_refused(config, tmp_path):
    data = tmp_path / "beir"
    (data / "qrels").mkdir(parents=True)
    (data / "corpus.jsonl").write_text('{"_id": "d1", "title": "", "text": "a"}\n')
    (data / "queries.jsonl").write_text('{"_id": "q1", "text": "b"}\n')
    (data / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td9\t1\n")
    with pytest.raises(InputError, match="d9"):
        train_embedder(replace(config, data=(str(data),)))


@pytest.mark.parametrize(("kind", "reason"), [("CNN", "CNN"), ("Pooling", "max")])
def test_an_embedder_with_an_unsupported_module_is_refused(config, folder, tmp_path, kind, reason):
    source = Path(tmp_path / "st")
    reference_model(folder / "qwen3", "mean").save(str(source), create_model_card=False)
    modules = json.loads((source / "modules.json").read_text())
    if kind == "CNN":
        modules[1]["type"] = "sentence_transformers.models.CNN"
        (source / "modules.json").write_text(json.dumps(modules))
    else:
        (source / modules[1]["path"] / "config.json").write_text('{"pooling_mode": "max"}')
    with pytest.raises(InputError, match=reason):
        train_embedder(replace(config, init_from=str(source)))


@pytest.mark.parametrize(
    "keys",
    [
        {"dimension": 8}, {"n_layer": 2}, {"trainable": "lora"}, {"batch_size": 6}, {"seed": 1},
        {"data": ("more.jsonl",)},
    ],
    ids=str,
)  # fmt: skip
def test_a_checkpoint_of_another_configuration_is_refused(config, folder, keys):
    train_embedder(replace(config, max_iters=1))
    if "data" in keys:
        keys = {"data": (str(folder / "more.jsonl"),)}
    with pytest.raises(InputError, match=r"same configuration|choose another out_dir"):
        train_embedder(replace(config, **keys))
    assert newest(config).name == "step-1"


def test_a_checkpoint_of_pretraining_is_refused(config):
    train_embedder(replace(config, max_iters=1))
    saved = newest(config)
    (saved / "training.safetensors").unlink()  # only embedding training writes this file
    manifest = saved / "state.json"
    state = json.loads(manifest.read_text())
    del state["manifest"]["training.safetensors"]
    manifest.write_text(json.dumps(state | {"checksum": run_folder.state_checksum(state)}))
    with pytest.raises(InputError, match="is not a checkpoint of embedding training; choose another out_dir"):
        train_embedder(config)


def test_resuming_lora_on_another_base_model_is_refused(config, folder, tmp_path):
    other = save_model(tmp_path / "other", "qwen3")
    config = replace(config, trainable="lora", max_iters=1)
    train_embedder(config)
    with pytest.raises(InputError, match="init_from"):
        train_embedder(replace(config, init_from=str(other), max_iters=2))


@pytest.mark.parametrize(
    ("chunk_size", "mend"), [(None, "give chunk_size 32"), (64, "a chunk_size below 64")]
)
def test_out_of_memory_errors_suggest_a_chunk_size(config, monkeypatch, chunk_size, mend):
    def full(*args: object, **keys: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 B")

    monkeypatch.setattr(module, "train", full)
    with pytest.raises(InputError, match=mend):
        train_embedder(replace(config, chunk_size=chunk_size))


def test_training_and_encoding_use_the_same_token_ids(config):
    """The training loss is computed on the same ids to which the saved embedder tokenises the texts."""
    seen: list[list[int]] = []
    real = EmbeddingLoss.__call__

    def call(self: EmbeddingLoss, model: Any, batch: Any) -> Any:
        seen.extend(batch.rows)
        return real(self, model, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EmbeddingLoss, "__call__", call)
        train_embedder(replace(config, query_prompt="find this: ", train_tokens=12, max_iters=1))
    encoder = Encoder.from_pretrained(newest(config))
    rows = [json.loads(line) for line in Path(config.data[0]).read_text().splitlines()]
    texts = [encoder.prompt("query") + row["query"] for row in rows]
    texts += [encoder.prompt("document") + row[key] for row in rows for key in ("positive", "negative")]
    known = {tuple(ids) for ids in encoder.tokenize(texts, 12)}
    assert {tuple(ids) for ids in seen} <= known
    assert max(map(len, seen)) == 12
    assert Tokenizer.from_pretrained(newest(config)).fingerprint == encoder.tokenizer.fingerprint
