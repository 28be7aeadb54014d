"""Log-probabilities in completions and chat, compared with one forward over the whole text."""

import math

import pytest
import torch

from tests.serve.conftest import HELLO, SAYS, chat, complete

# Favours the three byte tokens of 知, in any order, so that the text has complete and incomplete characters.
BROKEN = {"temperature": 1.0, "seed": 3, "max_tokens": 40, "logit_bias": {"163": 9, "253": 9, "98": 9}}


def reference(model, prompt, new, n):
    """Log-probabilities of each new token and of the n best at its position, from one forward over prompt + new."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + new])).logits[0, len(prompt) - 1 : -1]
    every = logits.float().log_softmax(-1)
    return every[range(len(new)), new].tolist(), every.topk(n).values.tolist()


def written(content):
    return b"".join(bytes(one.bytes) for one in content).decode(errors="replace")


def test_chat_logprobs(random_api, model, tokenizer):
    options = {**BROKEN, "logprobs": True}
    choice = chat(random_api, top_logprobs=4, **options).choices[0]
    content = choice.logprobs.content
    assert written(content) == choice.message.content
    assert any("\ufffd" in one.token for one in content)  # incomplete characters come with their bytes
    ids = [tokenizer._backend.encode_single_token(bytes(one.bytes)) for one in content]
    own, best = reference(model, tokenizer.chat(HELLO), ids, 4)
    assert [one.logprob for one in content] == pytest.approx(own, abs=1e-3)
    for one, expected in zip(content, best, strict=True):
        assert [top.logprob for top in one.top_logprobs] == pytest.approx(expected, abs=1e-3)
    none = chat(random_api, **options).choices[0]
    assert [one.top_logprobs for one in none.logprobs.content] == [[]] * 40
    assert none.message.content == choice.message.content
    chunks = list(chat(random_api, top_logprobs=4, stream=True, **options))
    parts = [c.choices[0].logprobs.content for c in chunks if c.choices[0].logprobs]
    pieces = [one for part in parts for one in part]
    assert [one.bytes for one in pieces] == [one.bytes for one in content]
    for one, other in zip(pieces, content, strict=True):
        for ours, theirs in zip([one, *one.top_logprobs], [other, *other.top_logprobs], strict=True):
            assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)


def test_completion_logprobs(random_api, model, tokenizer):
    options = BROKEN
    choice = complete(random_api, logprobs=2, **options).choices[0]
    shape = choice.logprobs
    assert (
        len(shape.tokens)
        == len(shape.token_logprobs)
        == len(shape.top_logprobs)
        == len(shape.text_offset)
        == 40
    )
    assert any(token.startswith("bytes:\\x") for token in shape.tokens)
    for i, (token, offset) in enumerate(zip(shape.tokens, shape.text_offset, strict=True)):
        assert shape.top_logprobs[i][token] == shape.token_logprobs[i]
        assert 2 <= len(shape.top_logprobs[i]) <= 3
        if "\ufffd" not in choice.text[: offset + len(token)] and not token.startswith("bytes:"):
            assert choice.text[offset : offset + len(token)] == token
    again = complete(random_api, logprobs=0, **options).choices[0].logprobs
    assert again.token_logprobs == pytest.approx(shape.token_logprobs, abs=1e-4)
    greedy = complete(random_api, logprobs=0, temperature=0, max_tokens=5).choices[0].logprobs
    assert all(
        list(top.values()) == [p] for top, p in zip(greedy.top_logprobs, greedy.token_logprobs, strict=True)
    )
    chunks = list(complete(random_api, logprobs=2, stream=True, **options))
    for name in ("tokens", "token_logprobs", "text_offset"):
        pieces = [x for c in chunks for x in getattr(c.choices[0].logprobs, name)]
        expected = getattr(shape, name)
        assert pieces == (pytest.approx(expected, abs=1e-4) if name == "token_logprobs" else expected)


def test_logprobs_leave_out_the_end_of_text_and_are_json(api, tokenizer):
    choice = chat(api, temperature=0, logprobs=True, top_logprobs=3).choices[0]
    assert choice.message.content == SAYS
    assert [one.token for one in choice.logprobs.content] == [
        tokenizer.decode([i]) for i in tokenizer.encode(SAYS)
    ]
    assert all(math.isfinite(top.logprob) for one in choice.logprobs.content for top in one.top_logprobs)
