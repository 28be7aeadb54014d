"""Token shards: ids are read back unchanged; damaged and truncated shards and other tokenizers are refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_core.common.errors import InputError
from gpt_core.data.shards import HEADER, ShardWriter, open_split, token_dtype

MINE = "a" * 64


def write(folder: Path, documents: list[list[int]], vocab_size: int = 300, **options: int) -> None:
    with ShardWriter(folder, "train", vocab_size, MINE, **options) as writer:
        for ids in documents:
            writer.add(ids)


@pytest.mark.parametrize("vocab_size", [65, 2**16, 2**16 + 1, 151_936])
def test_every_id_of_a_vocabulary_is_read_back(tmp_path: Path, vocab_size: int) -> None:
    ids = [0, vocab_size - 1, vocab_size // 2, 65_535 % vocab_size, 65_536 % vocab_size]
    write(tmp_path, [ids], vocab_size)
    (shard,) = open_split(tmp_path, "train")
    assert shard.tokens.tolist() == ids
    assert shard.tokens.dtype == token_dtype(vocab_size)
    assert shard.tokens.itemsize == (2 if vocab_size <= 65_536 else 4)
    assert shard.tokenizer == MINE
    shard.verify(vocab_size)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.integers(0, 299), max_size=20), min_size=1, max_size=12), st.integers(1, 40))
def test_documents_and_their_offsets_are_read_back_for_any_shard_size(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], shard_tokens: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    write(folder, documents, shard_tokens=shard_tokens)
    back = []
    for shard in open_split(folder, "train"):
        shard.verify(300)
        back += [piece.tolist() for piece in np.split(shard.tokens, shard.documents()[1:])]
    assert back == documents


@settings(max_examples=30)
@given(
    st.lists(
        st.lists(st.lists(st.integers(0, 299), max_size=9), min_size=1, max_size=4), min_size=1, max_size=9
    ),
    st.integers(1, 40),
    st.integers(0, 30),
    st.integers(0, 30),
)
def test_a_writer_resumed_from_a_saved_state_writes_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory,
    documents: list[list[list[int]]],
    shard_tokens: int,
    saved: int,
    after: int,
) -> None:
    pieces = [(ids, i < len(one) - 1) for one in documents for i, ids in enumerate(one)]
    saved = min(saved, len(pieces))
    whole, folder = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("resumed")
    write(whole, [[i for ids in one for i in ids] for one in documents], shard_tokens=shard_tokens)

    lost = ShardWriter(folder, "train", 300, MINE, shard_tokens)
    for ids, more in pieces[:saved]:
        lost.add(ids, more=more)
    state = json.loads(json.dumps(lost.state()))
    with lost:  # ids added after the state was saved must be discarded, also those of a finished shard
        for ids, more in pieces[saved : saved + after]:
            lost.add([*ids, 7], more=more)
    with ShardWriter(folder, "train", 300, MINE, shard_tokens, resume=state) as writer:
        for ids, more in pieces[saved:]:
            writer.add(ids, more=more)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        p.name: p.read_bytes() for p in whole.iterdir()
    }
    assert (writer.n_tokens, writer.n_documents) == (sum(len(ids) for ids, _ in pieces), len(documents))


def test_a_state_beyond_the_end_of_a_shard_is_refused(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "train", 300, MINE) as writer:
        writer.add([1, 2, 3])
        state = writer.state()
    path = tmp_path / "train-00000.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"train-00000\.bin is shorter than its saved progress"):
        ShardWriter(tmp_path, "train", 300, MINE, resume=state)
    path.unlink()
    with pytest.raises(InputError, match=r"train-00000\.bin is shorter than its saved progress"):
        ShardWriter(tmp_path, "train", 300, MINE, resume=state)


@pytest.mark.parametrize("bad", [-1, 300, 70_000])
def test_an_id_outside_the_vocabulary_is_refused(tmp_path: Path, bad: int) -> None:
    with pytest.raises(InputError, match=f"Token id {bad} is outside the vocabulary of 300"):
        write(tmp_path, [[1, bad]])


def test_any_flipped_byte_is_found(tmp_path: Path) -> None:
    write(tmp_path, [[1, 2, 3], [4, 5, 299]])

    def check() -> None:
        for shard in open_split(tmp_path, "train"):
            shard.verify(300)

    check()
    for path in (tmp_path / "train-00000.bin", tmp_path / "train-00000.documents.npy"):
        whole = path.read_bytes()
        for place in range(len(whole) - 16 if path.suffix == ".npy" else 0, len(whole)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
            with pytest.raises(InputError, match="train-00000"):
                check()
        path.write_bytes(whole)
    check()


@pytest.mark.parametrize("size", [0, 7, HEADER.itemsize - 1, HEADER.itemsize, HEADER.itemsize + 3])
def test_a_truncated_shard_is_refused_when_it_is_opened(tmp_path: Path, size: int) -> None:
    write(tmp_path, [[1, 2, 3]])
    path = tmp_path / "train-00000.bin"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match=r"is not a token shard|has \d+ bytes, expected"):
        open_split(tmp_path, "train")


def test_nanogpts_files_are_read(tmp_path: Path) -> None:
    ids = np.array([50_256, 0, 1, 40_000], dtype=np.uint16)
    ids.tofile(tmp_path / "train.bin")
    (shard,) = open_split(tmp_path, "train")
    assert shard.tokens.tolist() == ids.tolist()
    assert shard.tokenizer is None
    shard.verify(50_257)
    with pytest.raises(InputError, match=r"train\.bin holds token id 50256; the vocabulary has only 65"):
        shard.verify(65)
    (tmp_path / "train.bin").write_bytes(b"odd")
    with pytest.raises(InputError, match="has 3 bytes, an odd number"):
        open_split(tmp_path, "train")


def test_a_missing_split_is_an_error_that_says_how_to_make_it(tmp_path: Path) -> None:
    write(tmp_path, [[1, 2, 3]])
    with pytest.raises(InputError, match=r"no token shards of the split 'val'.*prepare_data\.py"):
        open_split(tmp_path, "val")
