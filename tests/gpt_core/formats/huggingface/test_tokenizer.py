"""Tokenizers from the files of model folders: the same ids as transformers, and errors for invalid files."""

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from gpt_core.common.errors import InputError
from gpt_core.tokenizer.builtin import ASSETS
from gpt_core.tokenizer.tokenizer import PROBE, Tokenizer

TEXTS = [PROBE, "", " leading", "it's  two\n\n\nlines", "知之为知之 🙂🏽", "a\x00b\ufffd", "[SOS] kraken"]


def write(folder, **files):
    """Write GPT-2's `vocab.json` and `merges.txt`, and the JSON files `files`."""
    folder.mkdir(exist_ok=True)
    shutil.copy(ASSETS / "encoder.json", folder / "vocab.json")
    shutil.copy(ASSETS / "vocab.bpe", folder / "merges.txt")
    for name, content in ({"config": {"model_type": "gpt2"}} | files).items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def flagged(token, **flags):
    plain = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": True}
    return plain | flags | {"content": token}


FOLDERS = {
    "bare": {},
    "gpt2": {"tokenizer_config": {"model_max_length": 1024}},
    "gpt-neo": {
        "config": {"model_type": "gpt_neo"},
        "tokenizer_config": {
            "tokenizer_class": "GPT2Tokenizer",
            "unk_token": flagged("<|endoftext|>") | {"__type": "AddedToken"},
            "bos_token": flagged("<|endoftext|>") | {"__type": "AddedToken"},
            "eos_token": flagged("<|endoftext|>") | {"__type": "AddedToken"},
            "pad_token": None,
            "add_prefix_space": False,
        },
        "special_tokens_map": {
            "bos_token": flagged("<|endoftext|>"), "eos_token": flagged("<|endoftext|>"),
            "unk_token": flagged("<|endoftext|>"), "pad_token": "<|endoftext|>",
        },
    },
    "added": {
        "tokenizer_config": {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True},
        "special_tokens_map": {"pad_token": "[PAD]", "eos_token": "<|endoftext|>"},
        "added_tokens": {"[PAD]": 50258, "[SOS]": 50257, "kraken": 50259},
    },
    "decoder": {
        "tokenizer_config": {
            "tokenizer_class": "GPT2TokenizerFast",
            "bos_token": "<s>", "eos_token": "<|endoftext|>", "add_bos_token": True,
            "added_tokens_decoder": {
                "50256": flagged("<|endoftext|>", normalized=False, special=True),
                "50257": flagged("<s>", normalized=False, special=True),
                "50258": flagged("kraken", special=False),
            },
        },
        "special_tokens_map": {"bos_token": "ignored"},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_vocabulary_and_merges_give_transformers_ids(name, tmp_path):
    folder = write(tmp_path, **FOLDERS[name])
    ours, theirs = Tokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for text in [*TEXTS, "a kraken, krakens"]:
        assert ours.encode(text, add_special_tokens=True) == theirs(text)["input_ids"]
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
    spelled = "a [PAD]<s><|endoftext|>"
    assert (
        ours.encode(spelled)
        == theirs(spelled, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    )
    assert ours.vocab_size == len(theirs)
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (
        theirs.bos_token_id,
        theirs.eos_token_id,
        theirs.pad_token_id,
    )


@given(st.text())
def test_any_text_has_gpt2s_ids(merges, text):
    assert merges.encode(text) == GPT2.encode(text)


GPT2 = Tokenizer.from_pretrained("gpt2")


@pytest.fixture(scope="module")
def merges(tmp_path_factory):
    return Tokenizer.from_pretrained(write(tmp_path_factory.mktemp("merges")))


def test_special_tokens_of_a_tokenizer_json_come_from_the_config_files(tmp_path):
    GPT2.save(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()

    def ids():
        tokenizer = Tokenizer.from_pretrained(tmp_path)
        return tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id

    assert ids() == (None, None, None)
    config = {"model_type": "gpt2", "bos_token_id": 50256, "eos_token_id": 50256, "pad_token_id": 99999}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert ids() == (50256, 50256, None)  # as in the repository gpt2
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": flagged("!"), "pad_token": "?"})
    )
    assert ids() == (50256, 0, 30)
    settings = {"eos_token": "#", "bos_token": None, "added_tokens_decoder": {}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert ids() == (None, 2, None)
    for token in ("<gone>", flagged("<gone>")):
        settings |= {"pad_token": token, "eos_token": token}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        for told in ("2", "[99999, 2, 5]"):  # config.json gives the end-of-text id
            (tmp_path / "config.json").write_text(f'{{"eos_token_id": {told}, "pad_token_id": -1}}')
            assert ids() == (None, 2, None)
        for told in ("null", "99999", "[]", "[99999, -1, 1e3, 4294967296]", "true"):
            (tmp_path / "config.json").write_text(f'{{"eos_token_id": {told}}}')
            with pytest.raises(
                InputError, match="names '<gone>' as its eos_token, which its tokenizer does not have"
            ):
                ids()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_config": []}, r"tokenizer_config\.json holds a list; expected an object"),
        ({"special_tokens_map": 3}, r"special_tokens_map\.json holds a int; expected an object"),
        (
            {"tokenizer_config": {"tokenizer_class": "CodeGenTokenizer"}},
            "of a CodeGenTokenizer, which may split text in other",
        ),
        (
            {"added_tokens": {"[PAD]": 60000}},
            r"added_tokens\.json gives '\[PAD\]' the id 60000, which leaves a gap",
        ),
        ({"added_tokens": {"[PAD]": 5}}, r"added_tokens\.json gives '\[PAD\]' the id 5"),
        (
            {"added_tokens": {"[PAD]": "5"}},
            r"added_tokens\.json gives '\[PAD\]' the id '5'; expected a whole number",
        ),
        ({"vocab": {"a": 0}}, r"vocab\.json or merges\.txt that cannot be read"),
        ({"vocab": []}, r"vocab\.json or merges\.txt that cannot be read"),
    ],
)
def test_invalid_tokenizer_files_are_refused(tmp_path, files, message):
    with pytest.raises(InputError, match=message):
        Tokenizer.from_pretrained(write(tmp_path, **files))


def test_missing_and_damaged_files_are_refused(tmp_path):
    write(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text("{")
    with pytest.raises(InputError, match=r"special_tokens_map\.json is not valid JSON"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "special_tokens_map.json").unlink()
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(
        InputError, match=r"has no tokenizer: no tokenizer\.json, no vocab\.json with merges\.txt"
    ):
        Tokenizer.from_pretrained(tmp_path)
    GPT2.save(tmp_path)
    whole = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    for damaged in (
        whole[: len(whole) // 2],
        "",
        "[]",
        '{"model": 3}',
        '{"model": {"type": "BPE", "vocab": {}, "merges": []}}',
        whole.replace('"BPE"', '"WordPiece"'),
    ):
        (tmp_path / "tokenizer.json").write_text(damaged, encoding="utf-8")
        with pytest.raises(InputError, match=r"tokenizer\.json is not a tokenizer that can be read"):
            Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"tokenizer\.json is not a tokenizer that can be read"):
        Tokenizer.from_pretrained(tmp_path)
