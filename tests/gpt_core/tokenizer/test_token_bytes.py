"""The bytes that each token stands for."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, normalizers

from gpt_core.tokenizer.tokenizer import Tokenizer

GPT2 = Tokenizer.from_pretrained("gpt2")
OPENED = Tokenizer(GPT2.rust)  # the same vocabulary in the library `tokenizers`


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.text(max_size=40))
@example("知之为知之 👩‍👩‍👧\ufffd <|endoftext|> naïve")
def test_the_bytes_of_the_tokens_are_those_of_the_text(text):
    for tokenizer in (GPT2, OPENED):
        assert b"".join(tokenizer.token_bytes(i) for i in tokenizer.encode(text)) == text.encode()


def test_the_bytes_of_a_special_token_are_its_text():
    assert GPT2.token_bytes(GPT2.eos_id) == b"<|endoftext|>"
    assert OPENED.token_bytes(GPT2.eos_id) == b"<|endoftext|>"


def test_added_tokens_are_utf8_and_not_in_the_byte_alphabet():
    backend = RustTokenizer.from_str(GPT2.rust.to_str())
    backend.add_tokens(["né"])  # é also stands for the byte E9 in GPT-2's byte alphabet
    tokenizer = Tokenizer(backend)
    assert tokenizer.token_bytes(tokenizer.vocab_size - 1) == "né".encode()


@pytest.mark.parametrize(("token", "data"), [("▁know", b" know"), ("ing", b"ing"), ("知", "知".encode())])
def test_sentencepiece_tokens_keep_their_spaces_and_bytes(token, data):
    vocab = {f"<0x{i:02X}>": i for i in range(256)} | {"▁know": 256, "ing": 257, "知": 258, "<unk>": 259}
    backend = RustTokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = Tokenizer(backend)
    assert tokenizer.token_bytes(vocab[token]) == data
    for i in range(256):
        assert tokenizer.token_bytes(i) == bytes([i])
