"""From text to shards: nothing lost, nothing in both splits, nothing left behind after bad input."""

import json
from pathlib import Path

import pytest

from gpt_core.errors import InputError
from gpt_core.prepare import prepare_data
from gpt_core.shards import open_split
from gpt_core.tokenizer import Tokenizer


def texts(folder: Path, split: str) -> list[str]:
    """The documents of a split, decoded by the tokenizer that lies beside them."""
    tokenizer = Tokenizer.from_pretrained(folder)
    documents = []
    for shard in open_split(folder, split):
        assert shard.tokenizer == tokenizer.fingerprint
        shard.verify(tokenizer.vocab_size)
        ends = [*shard.documents()[1:].tolist(), len(shard.tokens)]
        documents += [
            tokenizer.decode(shard.tokens[a:b].tolist()) for a, b in zip(shard.documents(), ends, strict=True)
        ]
    return documents


def write_jsonl(path: Path, rows: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(rows)))


def test_shakespeare_char_is_nanogpts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare_data(dataset="shakespeare_char", out=str(tmp_path / "out"))
    said = capsys.readouterr().out
    assert "train: 1,003,854 tokens" in said  # the counts that nanoGPT's prepare.py prints
    assert "val: 111,540 tokens" in said
    assert "vocabulary of 65" in said
    original = Path("examples/tiny_shakespeare.txt").read_text(encoding="utf-8")
    assert texts(tmp_path / "out", "train") + texts(tmp_path / "out", "val") == [
        original[:1_003_854],
        original[1_003_854:],
    ]


def test_a_text_file_is_kept_to_the_byte(tmp_path: Path) -> None:
    text = "知之为知之，不知为不知。\r\n是知也 🙂\n" * 20
    (tmp_path / "a.txt").write_bytes(text.encode())
    prepare_data(input=[str(tmp_path / "a.txt")], out=str(tmp_path / "out"))
    (train,), (val,) = texts(tmp_path / "out", "train"), texts(tmp_path / "out", "val")
    assert train.removesuffix("<|endoftext|>") + val.removesuffix("<|endoftext|>") == text


def test_documents_are_split_whole_and_repeated_ones_stay_together(tmp_path: Path) -> None:
    rows = [f"document number {i}" for i in range(60)]
    write_jsonl(tmp_path / "a.jsonl", rows + rows)
    prepare_data(input=[str(tmp_path)], out=str(tmp_path / "out"), val_fraction=0.3)
    train = [t.removesuffix("<|endoftext|>") for t in texts(tmp_path / "out", "train")]
    val = [t.removesuffix("<|endoftext|>") for t in texts(tmp_path / "out", "val")]
    assert sorted(train + val) == sorted(rows + rows)
    assert not set(train) & set(val)
    assert 20 <= len(val) <= 52  # 36 expected

    write_jsonl(
        tmp_path / "a.jsonl", ["a new one", *rows]
    )  # whatever comes later, a document stays where it was
    prepare_data(input=[str(tmp_path / "a.jsonl")], out=str(tmp_path / "out2"), val_fraction=0.3)
    assert {t.removesuffix("<|endoftext|>") for t in texts(tmp_path / "out2", "val")} >= set(val)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "good"}\n\n{"text": \n', "a.jsonl, line 3, is not valid JSON"),
        ("a.jsonl", b'{"text": "good"}\n["text"]\n', "a.jsonl, line 2: expected a JSON object"),
        ("a.jsonl", b'{"body": "?"}\n', 'a.jsonl, line 1: expected an object with a string under "text"'),
        ("a.txt", b"fine \xff", "a.txt is not UTF-8 at byte 5"),
        ("a.txt", b"", "The train split got 0 tokens"),
        ("a.pdf", b"%PDF", "a.pdf is of no kind that can be read"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        prepare_data(input=[str(tmp_path / name)], out=str(tmp_path / "out"))
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_missing_and_contradictory_options(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    with pytest.raises(InputError, match="no file or folder"):
        prepare_data(input=[str(tmp_path / "nowhere.txt")], out=out)
    with pytest.raises(InputError, match="file in there"):
        prepare_data(input=[str(tmp_path)], out=out)
    with pytest.raises(InputError, match="either --input or --dataset"):
        prepare_data(out=out)
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(InputError, match="already holds something"):
        prepare_data(input=[str(tmp_path / "a.txt")], out=str(tmp_path))
    with pytest.raises(InputError, match="val_fraction is 1"):
        prepare_data(input=[str(tmp_path / "a.txt")], out=out, val_fraction=1)
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
