"""Shards of another tokenizer are refused, by the fingerprint in their header or by nanoGPT's `meta.pkl`."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from gpt_core.common.errors import InputError
from gpt_core.data.check_tokenizer import check_tokenizer
from gpt_core.data.shards import Shard, ShardWriter, open_split
from gpt_core.tokenizer.builtin import character_backend
from gpt_core.tokenizer.tokenizer import Tokenizer

MINE = Tokenizer(character_backend({"a": 0, "b": 1, "c": 2}))
OTHER = Tokenizer(character_backend({"a": 2, "b": 1, "c": 0}))


def test_shards_of_another_tokenizer_are_refused_with_both_fingerprints(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "train", 3, MINE.fingerprint) as writer:
        writer.add([0, 1, 2])
    shards = open_split(tmp_path, "train")
    check_tokenizer(shards, MINE, "mine")
    with pytest.raises(InputError, match=f"{MINE.fingerprint}.*the other is {OTHER.fingerprint}"):
        check_tokenizer(shards, OTHER, "the other")


def nanogpt_data(folder: Path) -> list[Shard]:
    np.array([0, 1, 2], np.uint16).tofile(folder / "train.bin")
    return open_split(folder, "train")


def test_nanogpts_data_are_of_the_characters_in_its_meta_pkl(tmp_path: Path) -> None:
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"stoi": {"a": 0, "b": 1, "c": 2}}))
    shards = nanogpt_data(tmp_path)
    check_tokenizer(shards, MINE, "mine")
    with pytest.raises(
        InputError, match=r"meta\.pkl is a vocabulary of 3 characters, but .* the other has 3 to"
    ):
        check_tokenizer(shards, OTHER, "the other")


@pytest.mark.parametrize("meta", [None, b"no pickle", pickle.dumps({"vocab_size": 3})])
def test_nanogpts_data_without_characters_may_be_of_any_tokenizer(tmp_path: Path, meta: bytes | None) -> None:
    if meta is not None:
        (tmp_path / "meta.pkl").write_bytes(meta)
    check_tokenizer(nanogpt_data(tmp_path), OTHER, "any")
