"""Splitting long texts into pieces: no text is lost, and the ids equal those of the whole text."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_core.data import text_pieces as pieces
from gpt_core.data.text_pieces import cut_text, cuts_change_ids, scan_utf8
from gpt_core.tokenizer.tokenizer import Tokenizer

GPT2 = Tokenizer.from_pretrained("gpt2")
# text that pre-tokenisers treat specially: runs of white space of all kinds, contractions, digits, marks, emoji
HARD = [
    *(
        "don't",
        "we'll",
        "'s",
        "is",
        "x",
        "42",
        "e\u0301",
        "Ωmega",
        "ไทย",
        "한국",
        "知之为知之",
        "🙂🏽",
        "-",
        "_",
        "...",
    ),
    *(
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "\u00a0",
        "\u3000",
        "\x1c",
        "\x85",
        "\u200b",
        "\u2028",
        ", ",
        ". ",
        "，",
        "。\n",
    ),
]


def ids_in_pieces(tokenizer: Tokenizer, text: str, length: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ids of the text encoded in pieces; pieces are joined where the cut between them is not harmless."""
    monkeypatch.setattr(pieces, "PIECE_CHARACTERS", length)
    parts, joined = list(cut_text(text)), [""]
    assert "".join(part for part, _ in parts) == text
    assert all(0 < len(part) <= length for part, _ in parts) or not text
    for part, harmless in parts:
        joined[-1] += part
        if harmless:
            joined.append("")
    return [i for ids in tokenizer.encode_to_numpy(joined) for i in ids.tolist()]


@given(st.lists(st.sampled_from(HARD)).map("".join) | st.text(), st.integers(2, 40))
def test_harmless_cuts_change_no_id_of_gpt2(text: str, length: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        assert ids_in_pieces(GPT2, text, length, patch) == GPT2.encode(text)


@pytest.mark.parametrize("length", [50, 1000])
def test_cuts_of_real_text_are_harmless_and_change_no_id(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    english = Path("gpt_core/data/tiny_shakespeare.txt").read_text(encoding="utf-8")[:200_000]
    for text in (english, "知之为知之，不知为不知，是知也。" * 1000):
        assert ids_in_pieces(GPT2, text, length, monkeypatch) == GPT2.encode(text)
        assert all(harmless for _, harmless in cut_text(text))
        characters = Tokenizer.from_characters(text)
        assert ids_in_pieces(characters, text, length, monkeypatch) == characters.encode(text)


def test_cuts_at_spaces_are_harmless_for_a_llama_like_split(
    smollm2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = Tokenizer.from_pretrained(smollm2)
    text = re.sub(
        r"\s+", " ", Path("gpt_core/data/tiny_shakespeare.txt").read_text(encoding="utf-8")[:50_000]
    )
    assert not cuts_change_ids(tokenizer)
    assert ids_in_pieces(tokenizer, text, 300, monkeypatch) == tokenizer.encode(text)


def test_a_tokenizer_that_prepends_to_each_text_is_detected() -> None:
    from tokenizers import Tokenizer as RustTokenizer
    from tokenizers import models, pre_tokenizers

    backend = RustTokenizer(models.WordLevel({"▁word": 0, "▁▁word": 1, "?": 2}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    assert cuts_change_ids(Tokenizer(backend))
    assert not cuts_change_ids(GPT2)


@given(st.text() | st.text().map("\ufeff".__add__), st.integers(1, 5))
def test_scan_utf8_counts_the_characters_of_a_file(
    tmp_path_factory: pytest.TempPathFactory, text: str, times: int
) -> None:
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(text.encode() * times)
    without_mark = (text * times).removeprefix("\ufeff")
    n, _, mark = scan_utf8(path)
    assert n == len(without_mark)
    assert path.read_bytes()[mark:].decode() == without_mark


@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf", b"x" * (2**20 - 1), b"x" * (2**20 + 5)])
def test_the_byte_that_is_not_utf8_is_named(tmp_path: Path, before: bytes) -> None:
    path = tmp_path / "a.txt"
    for bad in (b"\xff", b"\xe7\x9f!", b"\xe7\x9f"):
        path.write_bytes(before + bad)
        with pytest.raises(ValueError, match=f"not UTF-8 at byte {len(before)};"):
            scan_utf8(path)
