import pytest
import torch

from gpt_core.common.errors import InputError
from gpt_core.generation.engine import Engine
from gpt_core.generation.generate import generate
from gpt_core.generation.sampling import SamplingParams
from gpt_core.model.config import GPTConfig
from gpt_core.model.gpt import GPT
from gpt_core.tokenizer.tokenizer import Tokenizer

GPT2 = Tokenizer.from_pretrained("gpt2")
ANALECTS = "知之为知之，不知为不知，是知也。🙂👩‍👩‍👧 naïve"


@pytest.fixture(scope="module")
def reciter():
    """A tiny GPT-2 with the full GPT-2 vocabulary, overfitted to one line of Confucius."""
    torch.manual_seed(0)
    ids = torch.tensor([[*GPT2.encode(ANALECTS), GPT2.eos_id]])
    model = GPT(
        GPTConfig.gpt2(vocab_size=50304, block_size=80, n_layer=1, n_head=2, n_embd=32, eos_id=GPT2.eos_id)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    for _ in range(60):
        out = model(ids[:, :-1], targets=ids[:, 1:])
        (out.loss_sum / out.n_targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def test_chinese_and_emoji_stream_in_whole_characters(reciter):
    assert len(GPT2.encode(ANALECTS)) > 1.5 * len(ANALECTS)  # most characters are several tokens
    pieces = list(generate(reciter, GPT2, "知", temperature=0, max_new_tokens=75, stream=True))
    assert "".join(pieces) == ANALECTS[1:]
    assert len(pieces) > 20
    assert not any("\ufffd" in piece for piece in pieces)


def test_one_token_takes_one_forward(reciter, monkeypatch):
    """Also with several threads, where decoding steps are otherwise timed to choose their number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    forwards, forward = [], GPT.forward
    monkeypatch.setattr(GPT, "forward", lambda *args, **keys: forwards.append(1) or forward(*args, **keys))
    try:
        generate(reciter, GPT2, "知", temperature=0, max_new_tokens=1)
    finally:
        torch.set_num_threads(before)
    assert len(forwards) == 1


def test_a_stop_string_inside_chinese_text(reciter):
    text = generate(reciter, GPT2, "知", temperature=0, max_new_tokens=75, stop="为不")
    assert text == "之为知之，不知"


def test_single_batched_and_streamed_texts_are_the_same(reciter):
    prompts = ["知之", "Once upon a time", "🙂", "是", "a b c", "不知为", "x", "y", "知", "z z z z"]
    sampling = {"temperature": 1.5, "top_k": 200, "top_p": 0.9, "max_new_tokens": 12}
    together = generate(reciter, GPT2, prompts, seed=7, **sampling)
    one_by_one = [generate(reciter, GPT2, p, seed=7 + i, **sampling) for i, p in enumerate(prompts)]
    streamed = [
        "".join(generate(reciter, GPT2, p, seed=7 + i, stream=True, **sampling))
        for i, p in enumerate(prompts)
    ]
    assert together == one_by_one == streamed
    assert generate(reciter, GPT2, prompts[:0]) == []


def test_equal_prompts_of_a_list_give_different_texts(reciter):
    a, b = generate(reciter, GPT2, ["Once", "Once"], seed=3, temperature=3.0, max_new_tokens=12)
    assert a != b


def test_every_sampling_keyword_has_an_effect(reciter):
    options = {"temperature": 5.0, "max_new_tokens": 12, "seed": 1}
    by_heart = generate(reciter, GPT2, "知", temperature=0, max_new_tokens=12)
    assert generate(reciter, GPT2, "知", **options) != by_heart
    for narrow in ({"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}):
        assert generate(reciter, GPT2, "知", **(options | narrow)) == by_heart
    banned = GPT2.encode("之")[0]
    text = generate(reciter, GPT2, "知", temperature=0, max_new_tokens=12, logit_bias={banned: -1e9})
    assert banned not in GPT2.encode(text)


def test_a_repetition_penalty_counts_the_prompt_and_the_text(reciter):
    options = {"temperature": 0, "max_new_tokens": 12}
    (prompt,) = set(GPT2.encode(" the"))
    loud = {prompt: 50.0, 11: 40.0, 12: 30.0}  # without a penalty, the first would repeat for ever
    assert generate(reciter, GPT2, " the", logit_bias=loud, **options) == " the" * 12
    text = generate(reciter, GPT2, " the", logit_bias=loud, repetition_penalty=100.0, **options)
    assert text.startswith(GPT2.decode([11, 12]))  # " the" occurs in the prompt, 11 in the text
    assert " the" not in text


def test_a_text_longer_than_the_context_needs_overflow_slide(reciter):
    options = {"temperature": 5.0, "logit_bias": {GPT2.eos_id: -1e9}, "seed": 1}
    with pytest.raises(InputError, match="context holds 80"):
        generate(reciter, GPT2, "知", max_new_tokens=150, **options)
    long = generate(reciter, GPT2, "知", max_new_tokens=150, overflow="slide", **options)
    assert long == "".join(
        generate(reciter, GPT2, "知", max_new_tokens=150, overflow="slide", stream=True, **options)
    )
    begin = generate(reciter, GPT2, "知", max_new_tokens=60, **options)
    assert long.startswith(begin[:-1])  # the last character may be incomplete
    assert len(GPT2.encode(long)) > 130


def test_without_max_new_tokens_the_text_ends_with_the_context(reciter):
    options = {"temperature": 5.0, "logit_bias": {GPT2.eos_id: -1e9}, "seed": 1}
    prompts = ["知之", "a b c d"]
    for prompt, text in zip(prompts, generate(reciter, GPT2, prompts, **options), strict=True):
        n_free = 80 - len(GPT2.encode(prompt))
        (alone,) = generate(reciter, GPT2, [prompt], **(options | {"seed": 1 + prompts.index(prompt)}))
        assert (
            text
            == alone
            == generate(
                reciter,
                GPT2,
                prompt,
                **(options | {"seed": 1 + prompts.index(prompt), "max_new_tokens": n_free}),
            )
        )


def test_closing_a_stream_early_cancels_its_request(reciter):
    engine = Engine(reciter, GPT2, max_running=1)
    stream = engine.stream("知", SamplingParams(temperature=0, max_new_tokens=70))
    assert next(stream) == "之"
    requests = list(engine._requests)
    stream.close()
    assert [r.finish_reason for r in requests] == ["cancelled"]
    assert not engine.step()
    follower = engine.submit("知", SamplingParams(temperature=0, max_new_tokens=75))
    engine.run()
    assert follower.text == ANALECTS[1:]


def test_a_model_can_be_trained_after_generation(reciter):
    generate(reciter.train(), GPT2, "知", max_new_tokens=3, temperature=0)
    assert not reciter.training
    out = reciter(torch.tensor([[1, 2, 3]]), targets=torch.tensor([[2, 3, 4]]))
    out.loss_sum.backward()
    reciter.zero_grad()


def test_an_exception_of_the_model_reaches_the_caller(reciter):
    def fail(module, args, output):
        raise torch.OutOfMemoryError("no memory left")

    hook = reciter.blocks[0].register_forward_hook(fail)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            generate(reciter, GPT2, "知")
        with pytest.raises(torch.OutOfMemoryError):
            list(generate(reciter, GPT2, "知", stream=True))
    finally:
        hook.remove()


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("", {}, "empty"),
        (["知", ""], {}, "empty"),
        ("知 " * 80, {}, "context holds 80"),
        ("知", {"temperature": -1}, "^temperature is -1"),
        ("知", {"stop": [""]}, "^stop is "),
        ("知", {"max_new_tokens": 0}, "^max_new_tokens is 0"),
        ("知", {"min_p": 2}, "^min_p is 2"),
        ("知", {"repetition_penalty": 0}, "^repetition_penalty is 0"),
        ("知", {"overflow": "cut"}, "^overflow is 'cut'"),
        (["a", "b"], {"stream": True}, "list of 2"),
        ("", {"stream": True}, "empty"),  # at once, not at the first piece
    ],
)
def test_bad_input_is_one_clear_sentence(reciter, prompt, options, message):
    with pytest.raises(InputError, match=message):
        generate(reciter, GPT2, prompt, **options)
