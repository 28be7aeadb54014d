import os
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models

from gpt_core.tokenizer.detokenizer import Detokenizer
from gpt_core.tokenizer.tokenizer import Tokenizer

GPT2 = Tokenizer.from_pretrained("gpt2")
POEM = "知之为知之，不知为不知，是知也。👩‍👩‍👧‍👦🇨🇳 naïve ﷽ 한국어 हिन्दी"


def pieces_of(ids, stop=(), decode=GPT2.decode):
    """The detokenizer's output for each token and at the end, and whether it found a stop string."""
    detokenizer = Detokenizer(decode, stop)
    pieces = []
    for token in ids:
        pieces.append(detokenizer.push(token))
        if detokenizer.stopped:
            break
    return [*pieces, detokenizer.flush()], detokenizer.stopped


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.text(max_size=80))
@example(POEM)
def test_streamed_text_is_complete_and_splits_no_character(text):
    pieces, _ = pieces_of(GPT2.encode(text))
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.lists(st.one_of(st.integers(0, GPT2.vocab_size - 1), st.integers(94, 255)), max_size=60))
def test_any_tokens_stream_to_the_same_text_as_decoding_all_at_once(ids):  # 94 to 255: single bytes, mostly
    pieces, _ = pieces_of(ids)
    assert "".join(pieces) == GPT2.decode(ids)


def test_a_character_is_returned_as_soon_as_it_is_complete():
    ids = GPT2.encode("之为🙂")
    complete = [GPT2.decode(ids[:n]) for n in range(1, len(ids) + 1)]
    assert any(text.endswith("\ufffd") for text in complete)  # otherwise the test checks nothing
    pieces, _ = pieces_of(ids)
    for n, text in enumerate(complete, start=1):
        if not text.endswith("\ufffd"):
            assert "".join(pieces[:n]) == text


def test_an_incomplete_character_is_returned_at_the_end():
    ids = GPT2.encode("ok 🦜")[:-1]
    pieces, _ = pieces_of(ids)
    assert "".join(pieces) == "ok \ufffd"
    assert "\ufffd" not in "".join(pieces[:-1])


@pytest.mark.parametrize("text", ["ok 🦜 bird", "🦜 bird", "知之🙂🦜", POEM])
def test_a_character_that_begins_in_the_prompt_is_returned(text):
    ids = GPT2.encode(text)
    assert any("\ufffd" in GPT2.decode(ids[:n]) for n in range(len(ids)))  # otherwise the test checks nothing
    for n_prompt in range(len(ids)):
        seen = GPT2.decode(ids[:n_prompt]).rstrip("\ufffd")
        detokenizer = Detokenizer(GPT2.decode, prompt=ids[:n_prompt][-8:])
        pieces = [detokenizer.push(token) for token in ids[n_prompt:]]
        assert seen + "".join(pieces) == text


@pytest.mark.parametrize("prompt", ["\ufffd", "what is \ufffd", "\ufffd" * 9, "知\ufffd\ufffd"])
def test_a_replacement_character_in_the_prompt_is_not_repeated(prompt):
    before, after = GPT2.encode(prompt), GPT2.encode("\ufffd知, a sign")
    detokenizer = Detokenizer(GPT2.decode, prompt=before[-8:])
    assert "".join([*map(detokenizer.push, after), detokenizer.flush()]) == "\ufffd知, a sign"


def test_an_incomplete_character_of_the_prompt_is_not_returned():
    begun = GPT2.encode("ok 🦜")[:-1]
    detokenizer = Detokenizer(GPT2.decode, prompt=begun)
    assert detokenizer.push(GPT2.encode(" bird")[0]) == " bird"


UNICODE = st.one_of(
    st.text(alphabet="ab知之🙂\u200d👩👧🏽🇨🇳é\ufffd\n", max_size=30),
    st.text(max_size=30),
    st.sampled_from([POEM, "👨‍👩‍👧‍👦" * 3, "e\u0301\u0301 नमस्ते 👩🏽‍🚀"]),
)


def in_bytes(data, cuts):
    """Split `data` into tokens at the byte offsets `cuts`, also inside characters: the token ids and their decoder."""
    edges = [0, *sorted(c for c in cuts if c < len(data)), len(data)]
    tokens = [data[a:b] for a, b in pairwise(edges)]
    return list(range(len(tokens))), lambda ids: b"".join(tokens[i] for i in ids).decode(errors="replace")


@settings(derandomize=True, deadline=None, max_examples=500)
@given(text=UNICODE, cuts=st.sets(st.integers(1, 150)))
def test_text_split_at_any_bytes_streams_unchanged(text, cuts):
    ids, decode = in_bytes(text.encode(), cuts)
    detokenizer = Detokenizer(decode)
    given = ""
    for n, token in enumerate(ids, start=1):
        given += detokenizer.push(token)
        assert text.startswith(given)  # never half a character
        if "\ufffd" not in text:
            assert given == decode(ids[:n]).rstrip("\ufffd")  # complete characters come immediately
    assert given + detokenizer.flush() == text


@settings(derandomize=True, deadline=None, max_examples=300)
@given(data=st.binary(max_size=80), cuts=st.sets(st.integers(1, 80)))
@example(data=b"\x80" * 60 + b"\xf0\x9f\x99\x82", cuts=set(range(80)) - {0})
def test_invalid_utf8_streams_to_the_same_text_as_decoding_all_at_once(data, cuts):
    ids, decode = in_bytes(data, cuts)
    pieces, _ = pieces_of(ids, decode=decode)
    assert "".join(pieces) == data.decode(errors="replace")


@settings(derandomize=True, deadline=None, max_examples=500)
@given(text=UNICODE, cuts=st.sets(st.integers(1, 150)), share=st.floats(0, 1))
@example(text="\ufffd" * 4 + "知\ufffd🦜 b", cuts=set(range(150)), share=0.9)
def test_prompt_and_output_together_give_the_whole_text(text, cuts, share):
    ids, decode = in_bytes(text.encode(), cuts)
    n_prompt = round(share * len(ids))
    seen = os.path.commonprefix([decode(ids[:n_prompt]), text])  # noqa: RUF071
    detokenizer = Detokenizer(decode, prompt=ids[:n_prompt][-8:])
    pieces = [*map(detokenizer.push, ids[n_prompt:]), detokenizer.flush()]
    assert seen + "".join(pieces) == text


def test_bytes_that_never_form_a_character_do_not_block_the_stream():
    pieces, _ = pieces_of(list(range(200)), decode=lambda ids: "\ufffd" * len(ids))
    assert all(len("".join(pieces[: n + 1])) >= n - 16 for n in range(200))
    assert "".join(pieces) == "\ufffd" * 200


def first_stop(text, stop):
    """Reference: the text before the first completed stop string, and whether there is one."""
    for end in range(1, len(text) + 1):
        begins = [end - len(s) for s in stop if text[:end].endswith(s)]
        if begins:
            return text[: min(begins)], True
    return text, False


@settings(derandomize=True, deadline=None, max_examples=500)
@given(
    text=st.text(alphabet="ab知🙂", max_size=30),
    stop=st.lists(st.text(alphabet="ab知🙂", min_size=1, max_size=5), min_size=1, max_size=3),
    cuts=st.sets(st.integers(1, 29)),
)
def test_stop_strings_are_cut_as_in_the_reference_for_any_tokenisation(text, stop, cuts):
    edges = [0, *sorted(c for c in cuts if c < len(text)), len(text)]
    tokens = [text[a:b] for a, b in pairwise(edges)]
    pieces, stopped = pieces_of(
        list(range(len(tokens))), stop, decode=lambda ids: "".join(tokens[i] for i in ids)
    )
    assert ("".join(pieces), stopped) == first_stop(text, stop)

    pieces, stopped = pieces_of(GPT2.encode(text), stop)
    assert ("".join(pieces), stopped) == first_stop(text, stop)


@settings(derandomize=True, deadline=None, max_examples=500)
@given(data=st.data(), text=UNICODE, cuts=st.sets(st.integers(1, 150)))
def test_no_part_of_a_stop_string_is_returned_for_any_split_of_its_bytes(data, text, cuts):
    begin = data.draw(st.integers(0, len(text)))
    inside = text[begin : begin + data.draw(st.integers(1, 6))]
    stop = [s for s in (inside, data.draw(st.text(alphabet="知🙂\u200da", min_size=1, max_size=3))) if s]
    expected, stopped = first_stop(text, stop)
    ids, decode = in_bytes(text.encode(), cuts)
    detokenizer = Detokenizer(decode, stop)
    given = ""
    for token in ids:
        given += detokenizer.push(token)
        assert expected.startswith(given)
        if detokenizer.stopped:
            break
    assert (given + detokenizer.flush(), detokenizer.stopped) == (expected, stopped)


def test_the_beginning_of_a_stop_string_is_returned_when_the_rest_differs():
    detokenizer = Detokenizer(GPT2.decode, ("###END",))
    out = [detokenizer.push(i) for i in GPT2.encode("a ###EN")]
    assert "".join(out) == "a "
    out += [detokenizer.push(i) for i in GPT2.encode("Q b")]
    assert "".join(out) == "a ###ENQ b"


def test_the_cost_of_a_token_does_not_grow_with_the_text():
    decoded = 0

    def decode(ids):
        nonlocal decoded
        decoded += len(ids)
        return GPT2.decode(ids)

    ids = GPT2.encode(POEM * 40)
    pieces, _ = pieces_of(ids, decode=decode)
    assert "".join(pieces) == POEM * 40
    assert decoded < 30 * len(ids)


@pytest.fixture
def sentencepiece():
    """A decoder like Llama's: ▁ marks a space, and decoding drops the space before the first word."""
    words = ["▁hello", "▁world", "▁of", "▁words"]
    tokenizer = RustTokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="▁of"))
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer.decode


def test_the_space_before_a_word_is_kept(sentencepiece):
    pieces, _ = pieces_of([0, 1, 2, 3], decode=sentencepiece)
    assert pieces == ["hello", " world", " of", " words", ""]
    pieces, _ = pieces_of([0, 99, 1], decode=sentencepiece)  # 99 is not in the vocabulary
    assert pieces == ["hello", "", " world", ""]
    continued = Detokenizer(sentencepiece, prompt=[0])
    assert continued.push(1) == " world"


def test_a_byte_fallback_decoder_streams_whole_characters():
    """As in Llama: a run of byte tokens with an incomplete character decodes to one U+FFFD for each byte."""
    decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])

    def decode(ids):
        return decoder.decode([f"<0x{i:02X}>" for i in ids])

    text = "知之为知之👩‍👩‍👧🙂🙂🙂é不知"
    ids = list(text.encode())
    assert decode(ids[:8]) == "\ufffd" * 8
    for n_prompt in range(len(ids)):  # the output may begin inside a run, and inside a character
        detokenizer = Detokenizer(decode, prompt=ids[max(0, n_prompt - 8) : n_prompt])
        seen = len(bytes(ids[:n_prompt]).decode(errors="ignore"))
        given = ""
        for n, token in enumerate(ids[n_prompt:], start=n_prompt + 1):
            given += detokenizer.push(token)
            assert given == bytes(ids[:n]).decode(errors="ignore")[seen:]
        assert detokenizer.flush() == ""
