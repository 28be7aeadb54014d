import pytest
import torch

from gpt_core.common.errors import InputError
from gpt_core.generation.engine import Engine
from gpt_core.generation.sampling import SamplingParams
from tests.gpt_core.generation.test_engine import (
    CHARACTERS,
    GREEDY,
    SHAPES,
    alone,
    check_idle,
    prompt_of,
    tiny_gpt,
)


@pytest.fixture(scope="module", params=SHAPES)
def model(request):
    return tiny_gpt(request.param)


# --- prefix sharing and batched prefill ---


def count_reading(model):
    """The hook's handle, and a list that receives the number of input tokens of each forward."""
    counts = []
    return model.wte.register_forward_pre_hook(lambda module, args: counts.append(args[0].numel())), counts


@pytest.mark.parametrize("max_running", [1, 3])
def test_a_conversation_is_prefilled_once(model, max_running):
    engine = Engine(model, CHARACTERS, max_running=max_running, draft=0)
    params = SamplingParams(temperature=0, max_new_tokens=4)
    first = engine.submit(prompt_of(20), params)
    engine.run()
    longer = prompt_of(20) + first.token_ids + prompt_of(6, seed=1)
    hook, counts = count_reading(model)
    second = engine.submit(longer, params)
    engine.run()
    hook.remove()
    assert (first.n_reused, second.n_reused) == (0, 23)  # the last sampled token was never fed to the model
    assert counts[0] == len(longer) - 23
    assert second.token_ids == alone(model, longer, params).token_ids
    again = engine.submit(longer, params)
    engine.run()
    assert again.n_reused == len(longer) - 1
    assert again.token_ids == second.token_ids
    check_idle(engine)


def test_a_prefix_of_concurrent_requests_is_prefilled_once(model):
    engine = Engine(model, CHARACTERS, max_running=4, prefill_chunk=8, draft=0)
    shared = prompt_of(30)
    prompts = [shared + prompt_of(3, seed=i) for i in range(6)]
    hook, counts = count_reading(model)
    requests = [engine.submit(prompt, GREEDY) for prompt in prompts]
    engine.run()
    hook.remove()
    assert sum(counts) <= 30 + 6 * (3 + 24 - 1) + 6  # prompts prefilled in one batch may be padded
    for prompt, request in zip(prompts, requests, strict=True):
        assert request.token_ids == alone(model, prompt, GREEDY).token_ids


def test_short_prompts_are_prefilled_in_one_batch(model):
    engine = Engine(model, CHARACTERS, max_running=4, prefill_chunk=40, draft=0)
    hook, counts = count_reading(model)
    prompts = [prompt_of(length, seed=length) for length in (9, 4, 10, 30)]
    requests = [engine.submit(prompt, SamplingParams(temperature=0, max_new_tokens=2)) for prompt in prompts]
    engine.step()
    hook.remove()
    assert counts[0] == 3 * 10  # with the fourth prompt, padding would make it 4 · 30
    engine.run()
    for prompt, request in zip(prompts, requests, strict=True):
        assert request.token_ids == alone(model, prompt, GREEDY).token_ids[:2]


# --- drafted tokens ---


def test_a_short_prompt_does_not_wait_for_a_long_one():
    model = tiny_gpt("qwen3", block_size=2048)
    params = SamplingParams(temperature=0, max_new_tokens=4)
    expected = {n: alone(model, prompt_of(n), params, prefill_chunk=64).token_ids for n in (3, 40, 200, 1900)}
    engine = Engine(model, CHARACTERS, max_running=4, prefill_chunk=64, draft=0)
    requests = {n: engine.submit(prompt_of(n), params) for n in (1900, 200, 40, 3)}
    first_token: dict[int, int] = {}
    n_steps = 0
    while engine.step():
        n_steps += 1
        for n, request in requests.items():
            if request.token_ids:
                first_token.setdefault(n, n_steps)
    assert first_token[3] == 1
    assert first_token[40] == 3
    assert first_token[200] < 12
    assert first_token[1900] <= 36  # 1900 / 64, and what the others took of the chunks
    assert {n: request.token_ids for n, request in requests.items()} == expected


def test_a_long_prompt_is_read_at_half_speed_at_least():
    model = tiny_gpt("qwen3", block_size=1024)
    engine = Engine(model, CHARACTERS, max_running=4, prefill_chunk=32, draft=0)
    long = engine.submit(prompt_of(800), SamplingParams(temperature=0, max_new_tokens=1))
    seed, shorts, n_steps = 1, [], 0
    while not long.done:  # there are always short prompts behind it
        while sum(not short.done for short in shorts) < 3:
            shorts.append(engine.submit(prompt_of(12, seed), SamplingParams(temperature=0, max_new_tokens=1)))
            seed += 1
        engine.step()
        n_steps += 1
        assert n_steps <= 800 / 16, "the long prompt starves"
    assert long.finish_reason == "length"
    assert sum(short.done for short in shorts) >= n_steps - 2  # one in each step


def test_accepted_drafts_save_steps():
    model = tiny_gpt("qwen3")
    with torch.no_grad():  # a model that always predicts token 5
        for block in model.blocks:
            block.attn.o.weight.zero_()
            block.mlp.down.weight.zero_()
        model.wte.weight.zero_()
        model.wte.weight[5] = 1.0
    engine = Engine(model, CHARACTERS, draft=8)
    hook, counts = count_reading(model)
    request = engine.submit([5, 5, 5], SamplingParams(temperature=0, max_new_tokens=50))
    engine.run()
    hook.remove()
    assert request.token_ids == [5] * 50
    assert len(counts) < 50 / 1.5
    check_idle(engine)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafts_do_not_change_the_sampled_tokens(model, temperature):
    for length in (5, 20, 35):
        params = SamplingParams(25, temperature, seed=3, repetition_penalty=1.1, logprobs=2)
        prompt = (prompt_of(length) * 2)[: 2 * length - 3][:39]
        plain, guessed = (alone(model, prompt, params, draft=draft) for draft in (0, 8))
        assert plain.token_ids == guessed.token_ids
        for a, b in zip(plain.logprobs, guessed.logprobs, strict=True):
            assert a.token == b.token
            assert a.logprob == pytest.approx(b.logprob, abs=1e-3)


# --- log-probabilities ---


def test_log_probabilities_are_those_of_the_model(model):
    params = SamplingParams(20, temperature=1.3, seed=0, logprobs=3, top_k=10)
    request = alone(model, prompt_of(8), params)
    with torch.no_grad():
        logits = model(torch.tensor([prompt_of(8) + request.token_ids])).logits[0, 7:-1]
    for row, token, entry in zip(logits.log_softmax(-1), request.token_ids, request.logprobs, strict=True):
        assert entry.token == token
        assert entry.logprob == pytest.approx(float(row[token]), abs=1e-3)
        assert [t for t, _ in entry.best] == row.topk(3).indices.tolist()


def test_a_logit_bias_outside_the_vocabulary_is_rejected(model):
    with pytest.raises(InputError, match="logit_bias names token 64"):
        Engine(model, CHARACTERS).submit([1], SamplingParams(max_new_tokens=5, logit_bias={64: 1.0}))


def test_a_stream_closed_before_it_starts_leaves_no_request(model):
    engine = Engine(model, CHARACTERS)
    engine.stream([1, 2, 3], GREEDY).close()
    assert not engine.step()
    with pytest.raises(InputError):
        engine.stream([], GREEDY)  # raised here, not at the first piece
