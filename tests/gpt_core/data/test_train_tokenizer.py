"""Training a tokenizer: lossless for any text, readable by transformers, deterministic."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_core.common.errors import InputError
from gpt_core.data.prepare_data import prepare_data
from gpt_core.data.train_tokenizer import train_tokenizer
from gpt_core.tokenizer.tokenizer import Tokenizer

TEXTS = [
    "It's 2026, we'll see:\n\n  x_1 += 3.14159\t",
    "naïve café — 知之为知之，不知为不知 🙂🏽\r\n",
    "\0\x85\u3000 \u200b ",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    text = Path("gpt_core/data/tiny_shakespeare.txt").read_text(encoding="utf-8")[:200_000]
    with open(folder / "a.jsonl", "w") as file:
        for part in text.split("\n\n"):
            file.write(json.dumps({"body": part}) + "\n")
    train_tokenizer(input=[str(folder / "a.jsonl")], column="body", vocab_size=600, out=str(folder / "one"))
    train_tokenizer(input=[str(folder / "a.jsonl")], column="body", vocab_size=600, out=str(folder / "two"))
    return folder


def test_the_same_text_gives_the_same_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (folder / "one" / name).read_bytes() == (folder / "two" / name).read_bytes()
    tokenizer = Tokenizer.from_pretrained(folder / "one")
    assert tokenizer.vocab_size == 600
    assert tokenizer.eos_id == tokenizer.bos_id == 0
    assert len(tokenizer.encode("What say you, my lord?")) < 12


def test_a_byte_order_mark_changes_no_tokenizer(tmp_path: Path) -> None:
    for mark in ("", "\ufeff"):
        (tmp_path / "a.txt").write_text(mark + "knowing what you know " * 50, encoding="utf-8")
        (tmp_path / "b.txt").write_text(mark + "and what you do not " * 50, encoding="utf-8")
        input = [str(tmp_path / name) for name in ("a.txt", "b.txt")]
        train_tokenizer(input=input, vocab_size=300, out=str(tmp_path / f"out{len(mark)}"))
    first, second = (Tokenizer.from_pretrained(tmp_path / name) for name in ("out0", "out1"))
    assert first.fingerprint == second.fingerprint


def test_any_text_is_decoded_unchanged(folder: Path) -> None:
    tokenizer = Tokenizer.from_pretrained(folder / "one")

    @given(st.text() | st.sampled_from(TEXTS))
    def decodes_unchanged(text: str) -> None:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.encode_to_numpy([text])[0].tolist() == ids

    decodes_unchanged()
    assert 0 not in tokenizer.encode("<|endoftext|>")  # in a document it is plain text


def test_transformers_and_prepare_data_read_the_tokenizer(folder: Path) -> None:
    from transformers import AutoTokenizer

    ours, theirs = Tokenizer.from_pretrained(folder / "one"), AutoTokenizer.from_pretrained(folder / "one")
    for text in TEXTS:
        assert theirs.encode(text) == ours.encode(text)
        assert theirs.decode(theirs.encode(text)) == text
    assert theirs.eos_token == "<|endoftext|>"
    prepare_data(dataset="shakespeare", tokenizer=str(folder / "one"), out=str(folder / "data"))
    assert Tokenizer.from_pretrained(folder / "data").fingerprint == ours.fingerprint


def test_little_text_gives_fewer_tokens_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("abab abab")
    train_tokenizer(input=[str(tmp_path / "a.txt")], vocab_size=1000, out=str(tmp_path / "out"))
    assert "fewer than the requested 1,000" in capsys.readouterr().out
    assert Tokenizer.from_pretrained(tmp_path / "out").vocab_size < 270


def test_bad_input_is_refused_and_leaves_no_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"body": "b"}\n')
    (tmp_path / "b.txt").touch()
    out = str(tmp_path / "out")
    with pytest.raises(InputError, match="vocab_size is 256; expected at least 257"):
        train_tokenizer(input=[str(tmp_path / "a.jsonl")], vocab_size=256, out=out)
    with pytest.raises(InputError, match="min_frequency is 0"):
        train_tokenizer(input=[str(tmp_path / "a.jsonl")], vocab_size=300, min_frequency=0, out=out)
    with pytest.raises(InputError, match=r"a\.jsonl, line 2 has no column .*--on_bad_row skip"):
        train_tokenizer(input=[str(tmp_path / "a.jsonl")], vocab_size=300, out=out)
    train_tokenizer(
        input=[str(tmp_path / "a.jsonl")], vocab_size=300, out=str(tmp_path / "skipped"), on_bad_row="skip"
    )
    assert "skipped 1 rows that cannot be used" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "skipped")
    with pytest.raises(InputError, match="holds no text"):
        train_tokenizer(input=[str(tmp_path / "b.txt")], vocab_size=300, out=out)
    with pytest.raises(InputError, match="already exists and is not empty"):
        train_tokenizer(input=[str(tmp_path / "a.jsonl")], vocab_size=300, out=str(tmp_path))
    with pytest.raises(InputError, match="exactly one of --input and --dataset"):
        train_tokenizer(vocab_size=300, out=out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "b.txt"]


def test_pairs_of_words_become_tokens(tmp_path: Path) -> None:
    text = (
        "High blood pressure harms. Blood pressure, measured twice: a rat has blood, pressure has no blood.\n"
        * 20
    )
    common = "".join(
        f"{chr(97 + i // 26)}{chr(97 + i % 26)}x " * 200 for i in range(100)
    )  # more frequent words
    (tmp_path / "a.txt").write_text(text + common)
    out = tmp_path / "out"
    train_tokenizer(input=[str(tmp_path / "a.txt")], vocab_size=400, n_phrases=1, uncased=True, out=str(out))
    tokenizer = Tokenizer.from_pretrained(out)
    assert tokenizer.vocab_size == 400
    phrase = tokenizer.encode("blood pressure")
    assert [tokenizer.decode([i]).strip() for i in phrase] == ["blood pressure"]
    ids = tokenizer.encode("A Blood Pressure of 120")
    assert phrase[0] in ids
    # the phrase takes the space before it, and no other token differs
    rest = tokenizer.encode("a") + phrase + tokenizer.encode("of 120")
    assert ids == rest
    for other in ("blood pressures", "lifeblood pressure", "blood, pressure"):
        assert phrase[0] not in tokenizer.encode(other), other

    from transformers import AutoTokenizer

    peer = AutoTokenizer.from_pretrained(out)
    for sentence in ("Blood pressure", "the blood  pressure; BLOOD PRESSURE", "知道 blood pressure"):
        assert peer(sentence, add_special_tokens=False)["input_ids"] == tokenizer.encode(sentence)


@pytest.mark.parametrize(("n", "uncased"), [(1, False), (200, True), (-1, True)])
def test_phrases_that_do_not_fit_are_an_error(tmp_path: Path, n: int, uncased: bool) -> None:
    (tmp_path / "a.txt").write_text("blood pressure " * 50)
    with pytest.raises(InputError, match=f"n_phrases is {n}"):
        train_tokenizer(
            input=[str(tmp_path / "a.txt")],
            vocab_size=400,
            n_phrases=n,
            uncased=uncased,
            out=str(tmp_path / "out"),
        )
    assert not (tmp_path / "out").exists()
