"""Evaluation of language models: the same loss as transformers', exact bytes, and what is refused."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM

from gpt_core.common.errors import InputError
from gpt_core.data.prepare_data import prepare_data
from gpt_core.data.shards import open_split
from gpt_core.evaluation.evaluate_lm import byte_lengths, evaluate_lm
from gpt_core.tokenizer.tokenizer import Tokenizer
from tests.tiny_models import TEXTS, save_model

TEXT = "It's naïve café — 知之为知之 🙂🏽\t\r\n  x_1 += 3.14159\n\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny models with the same tokenizer, and shards of several documents made with it."""
    folder = tmp_path_factory.mktemp("lm")
    for graph in ("gpt2", "qwen3"):
        save_model(folder / graph, graph)
        path = str(folder / graph / "tokenizer.json")
        backend = RustTokenizer.from_file(path)
        backend.decoder = decoders.ByteLevel()
        backend.save(path)
    documents = [json.dumps({"text": text * 5}) for text in (*TEXTS, TEXT)]
    (folder / "texts.jsonl").write_text("\n".join(documents) + "\n")
    prepare_data(
        input=[str(folder / "texts.jsonl")],
        tokenizer=str(folder / "gpt2"),
        out=str(folder / "data"),
        val_fraction=0.5,
    )
    return folder


def report(capsys: pytest.CaptureFixture[str], **arguments: Any) -> dict[str, Any]:
    evaluate_lm(device="cpu", **arguments)
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_every_token_is_predicted_once_as_transformers_does(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(folder / graph) for graph in ("gpt2", "qwen3")]
    (shard,) = open_split(folder / "data", "val")
    ids = torch.from_numpy(shard.tokens.astype(np.int64))
    n_targets = len(ids) - 1
    # the text of the predicted tokens: the documents without the first token and the end-of-text tokens
    tokenizer = Tokenizer.from_pretrained(folder / "gpt2")
    text = tokenizer.decode([int(i) for i in ids if i != tokenizer.eos_id])
    n_bytes = len(text.encode()) - len(tokenizer.decode([int(ids[0])]).encode())
    assert "�" not in text
    for block_size in (None, 7):
        said = report(capsys, model=names, data=str(folder / "data"), block_size=block_size)
        for name, row in zip(names, said["results"], strict=True):
            theirs = AutoModelForCausalLM.from_pretrained(name).eval()
            size, total = block_size or 512, 0.0
            for start in range(0, n_targets, size):
                window = ids[start : start + size + 1]
                with torch.no_grad():
                    logits = theirs(window[None, :-1]).logits[0]
                total += torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
            assert row["loss"] == pytest.approx(total / n_targets, abs=1e-5)
            assert row["perplexity"] == pytest.approx(math.exp(total / n_targets), rel=1e-4)
            assert row["bits_per_byte"] == pytest.approx(total / math.log(2) / n_bytes, abs=1e-5)
            assert (row["dataset"], row["split"], row["model"], row["block_size"]) == (
                "data",
                "val",
                name,
                size,
            )
            assert (row["tokens"], row["bytes"]) == (n_targets, n_bytes)
        first, second = (row["bits_per_byte"] for row in said["results"])
        assert said["ratios"] == {
            f"{names[0]}/{names[1]} bits_per_byte": pytest.approx(first / second, abs=1e-5)
        }


@pytest.mark.parametrize(("block_size", "stride"), [(9, 1), (9, 4), (16, 16)])
def test_with_a_stride_only_the_last_tokens_of_a_window_are_predicted(
    folder: Path, capsys: pytest.CaptureFixture[str], block_size: int, stride: int
) -> None:
    """As in transformers' documentation of perplexity: targets that an earlier window predicted are masked."""
    name = str(folder / "gpt2")
    (row,) = report(capsys, model=[name], data=str(folder / "data"), block_size=block_size, stride=stride)[
        "results"
    ]
    (shard,) = open_split(folder / "data", "val")
    ids = torch.from_numpy(shard.tokens.astype(np.int64))
    theirs = AutoModelForCausalLM.from_pretrained(name).eval()
    total, n, done = 0.0, 0, 1
    while done < len(ids):
        end = min(len(ids), done + (block_size if done == 1 else stride))
        window = ids[max(0, end - 1 - block_size) : end]
        with torch.no_grad():
            logits = theirs(window[None, :-1]).logits[0]
        new = end - done
        total += torch.nn.functional.cross_entropy(logits[-new:], window[-new:], reduction="sum").item()
        n, done = n + new, end
    assert (row["tokens"], row["stride"]) == (n, stride)
    assert n == len(ids) - 1
    assert row["loss"] == pytest.approx(total / n, abs=1e-5)


def test_another_split_and_other_number_formats(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = {"model": [str(folder / "qwen3")], "data": str(folder / "data"), "split": "train"}
    (exact,) = report(capsys, **arguments)["results"]
    (rounded,) = report(capsys, **arguments, dtype="bfloat16")["results"]
    assert exact["split"] == "train"
    assert exact["tokens"] == sum(len(s.tokens) - 1 for s in open_split(folder / "data", "train"))
    (quantised,) = report(capsys, **arguments, dtype="int8")["results"]
    for row in (rounded, quantised):
        assert row["loss"] == pytest.approx(exact["loss"], abs=0.02)
        assert row["loss"] != exact["loss"]
    assert rounded["loss"] != quantised["loss"]


def test_invalid_arguments_are_rejected(folder: Path, tmp_path: Path) -> None:
    def refused(message: str, **arguments: Any) -> None:
        usual = {"model": [str(folder / "gpt2")], "data": str(folder / "data"), "device": "cpu"}
        with pytest.raises(InputError, match=message):
            evaluate_lm(**(usual | arguments))

    refused("--model names nothing", model=[])
    refused("no token shards of the split 'test'", split="test")
    for size in (0, 513):
        refused(f"block_size is {size}; expected 1 to 512, the context of ", block_size=size)
    refused("stride is 600; expected 1 to 512", stride=600)
    refused("stride is 0; expected 1 to 8", stride=0, block_size=8)
    (tmp_path / "a.txt").write_text("abc" * 50)
    prepare_data(input=[str(tmp_path / "a.txt")], tokenizer="char", out=str(tmp_path / "data"))
    refused("was made with the tokenizer", data=str(tmp_path / "data"))


def sentencepiece() -> RustTokenizer:
    words = ["▁", "▁v", "v", "ï", "t", "<0xE2>", "<0x80>", "<0x94>", *"abc"]
    vocab = {word: i for i, word in enumerate(words)}
    backend = RustTokenizer(models.BPE(vocab, [("▁", "v")], byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens(["<eos>"])
    backend.add_tokens(["né"])
    return backend


def test_byte_lengths_of_tokens_add_up_to_that_of_the_text() -> None:
    for tokenizer in (Tokenizer.from_pretrained("gpt2"), Tokenizer.from_characters(TEXT)):
        ids = tokenizer.encode(TEXT)
        lengths = byte_lengths(tokenizer)
        assert lengths.shape == (tokenizer.vocab_size,)
        assert lengths[ids].sum() == len(TEXT.encode())
        if tokenizer.eos_id is not None:
            assert lengths[tokenizer.eos_id] == 0

    pieces = Tokenizer(sentencepiece())
    text = " a—b né vt"
    ids = pieces.encode(text)
    assert pieces.decode(ids) == text
    assert len(pieces.encode("—")) == 3  # a token for each byte
    assert byte_lengths(pieces)[ids].sum() == len(text.encode())
    assert byte_lengths(pieces)[pieces.vocab_size - 2 : pieces.vocab_size].tolist() == [0, 3]


def test_tokens_that_depend_on_their_neighbours_are_rejected() -> None:
    backend = RustTokenizer(models.WordPiece({"a": 0, "##b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    with pytest.raises(InputError, match="depend on their neighbours"):
        byte_lengths(Tokenizer(backend))
