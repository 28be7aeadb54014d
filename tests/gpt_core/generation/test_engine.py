import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gpt_core.generation.engine import Engine
from gpt_core.generation.fast_model import prepare
from gpt_core.generation.sampling import SamplingParams
from gpt_core.model.config import GPTConfig
from gpt_core.model.gpt import GPT
from gpt_core.tokenizer.tokenizer import Tokenizer

BLOCK = 64
ALPHABET = "".join(chr(c) for c in range(32, 96))
CHARACTERS = Tokenizer.from_characters(ALPHABET)
GREEDY = SamplingParams(temperature=0, max_new_tokens=24)


SHAPES = ["gpt2", "qwen3", "windowed", "alibi"]


def tiny_gpt(shape, vocab_size=64, block_size=BLOCK, **other):
    """A random GPT with weights so large that every token of the context matters to the next one."""
    size = {"vocab_size": vocab_size, "block_size": block_size, "n_layer": 2, "n_head": 4, "n_embd": 32}
    if shape == "gpt2":
        config = GPTConfig.gpt2(**size, **other)
    else:
        window = {"window": 7, "window_layers": (1,)} if shape == "windowed" else {}
        window |= {"position": "alibi"} if shape == "alibi" else {}
        config = GPTConfig(**size, n_kv_head=2, head_dim=8, n_inner=64, **window, **other)
    torch.manual_seed(0)
    model = GPT(config)
    for p in model.parameters():
        if p.dim() >= 2:
            nn.init.normal_(p, std=0.4)
    return model.eval()


@pytest.fixture(scope="module", params=SHAPES)
def model(request):
    return tiny_gpt(request.param)


def prepared_gpt():
    """A model as the commands load it: linear layers merged, weights packed where the processor supports it."""
    return prepare(tiny_gpt("qwen3"), "float32")


def prompt_of(length, seed=0):
    rng = torch.Generator().manual_seed(1000 * seed + length)
    return torch.randint(64, (length,), generator=rng).tolist()


def alone(model, prompt, params, **engine):
    """Run one request in an engine without other requests; return the finished request."""
    engine = Engine(model, CHARACTERS, max_running=1, **engine)
    request = engine.submit(prompt, params)
    engine.run()
    assert request.error is None
    return request


def check_idle(engine):
    """Assert that all slots are idle, that cached lengths match the slots' ids, and that no request waits."""
    assert not engine.step()
    assert sorted(engine.slots._idle) == list(range(len(engine.cache.lengths)))
    assert engine.cache.lengths.tolist() == [len(ids) for ids in engine.slots.ids]


# --- concurrent requests ---


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    shape=st.sampled_from([*SHAPES, "prepared"]),
    draft=st.sampled_from([0, 1, 5]),
    max_running=st.integers(1, 4),
    prefill_chunk=st.sampled_from([2, 5, 64]),
    arrivals=st.lists(
        st.tuples(
            st.integers(0, 12),  # submitted before this step
            st.integers(1, 40),  # prompt length
            st.integers(1, 20),  # max_new_tokens
            st.sampled_from([0.0, 0.7, 1.5]),  # temperature
            st.one_of(st.none(), st.integers(1, 15)),  # cancelled before this step, if at all
        ),
        min_size=1,
        max_size=8,
    ),
)
def test_requests_do_not_notice_each_other(shape, draft, max_running, prefill_chunk, arrivals):
    model = prepared_gpt() if shape == "prepared" else tiny_gpt(shape)
    engine = Engine(model, CHARACTERS, max_running, prefill_chunk, draft=draft)
    requests = {}
    step = 0
    busy = True
    while busy or len(requests) < len(arrivals):
        for i, (joins, length, n_new, temperature, leaves) in enumerate(arrivals):
            if joins == step:
                params = SamplingParams(n_new, temperature, top_k=20, top_p=0.95, seed=i)
                requests[i] = engine.submit(prompt_of(length, seed=i), params)
            if leaves == step and i in requests:
                engine.cancel(requests[i])
        busy = engine.step()
        step += 1

    for i, request in requests.items():
        by_itself = alone(model, prompt_of(request.n_prompt, seed=i), request.params, draft=0)
        if request.finish_reason == "cancelled":
            assert request.token_ids == by_itself.token_ids[: len(request.token_ids)]
            assert by_itself.text.startswith(request.text)
        else:
            assert request.finish_reason == by_itself.finish_reason == "length"
            assert request.token_ids == by_itself.token_ids
            assert request.text == by_itself.text
    check_idle(engine)


def test_more_requests_than_slots_are_served_in_order(model):
    engine = Engine(model, CHARACTERS, max_running=3, draft=0)  # drafts may change the order
    requests = [engine.submit(prompt_of(3 + i), GREEDY) for i in range(12)]
    finished = []
    while engine.step():
        assert len([r for r in requests if r.slot != -1]) <= 3
        finished += [i for i, r in enumerate(requests) if r.done and i not in finished]
    assert finished == sorted(finished)
    for i, request in enumerate(requests):
        assert request.token_ids == alone(model, prompt_of(3 + i), GREEDY).token_ids
    check_idle(engine)


def test_a_long_prompt_does_not_delay_running_requests(model):
    engine = Engine(model, CHARACTERS, max_running=2, prefill_chunk=4, draft=0)
    writer = engine.submit(prompt_of(2), GREEDY)
    engine.step()
    reader = engine.submit(prompt_of(40), GREEDY)
    for step in range(1, 10):  # 40 tokens, 4 at a time
        before = len(writer.token_ids)
        engine.step()
        assert len(writer.token_ids) == before + 1
        assert int(engine.cache.lengths[reader.slot]) == 4 * step


def test_seeds(model):
    params = SamplingParams(temperature=2.0, max_new_tokens=20)
    one = alone(model, prompt_of(5), SamplingParams(temperature=2.0, max_new_tokens=20, seed=1)).token_ids
    again = alone(model, prompt_of(5), SamplingParams(temperature=2.0, max_new_tokens=20, seed=1)).token_ids
    other = alone(model, prompt_of(5), SamplingParams(temperature=2.0, max_new_tokens=20, seed=2)).token_ids
    assert one == again != other
    torch.manual_seed(0)
    unseeded = alone(model, prompt_of(5), params).token_ids
    torch.manual_seed(0)
    assert alone(model, prompt_of(5), params).token_ids != unseeded  # torch's global generator is not used


# --- end of a request ---


@pytest.mark.parametrize("several", [False, True])
def test_an_end_of_text_token_ends_the_text_and_is_not_shown(several):
    free = alone(tiny_gpt("qwen3"), prompt_of(6), GREEDY).token_ids
    for eos in set(free):
        eos_ids = (eos, free[5]) if several else (eos,)
        ended = alone(tiny_gpt("qwen3", eos_id=eos_ids if several else eos), prompt_of(6), GREEDY)
        cut = min(free.index(i) for i in eos_ids)
        assert ended.finish_reason == "stop"
        assert ended.token_ids == free[: cut + 1]
        assert ended.text == CHARACTERS.decode(free[:cut])


def test_a_stop_string_over_several_tokens_is_never_shown(model):
    free = alone(model, prompt_of(6), GREEDY).text
    for begin, end in ((0, 2), (4, 9), (10, 13)):
        stop = free[begin:end]
        pieces = []
        engine = Engine(model, CHARACTERS)
        params = SamplingParams(temperature=0, max_new_tokens=24, stop=(stop, "\x00never"))
        request = engine.submit(prompt_of(6), params, on_text=pieces.append)
        engine.run()
        assert request.finish_reason == "stop"
        assert request.text == "".join(pieces) == free[: free.index(stop)]
        assert CHARACTERS.decode(request.token_ids) == free[: free.index(stop) + len(stop)]
        check_idle(engine)


def test_text_held_back_for_a_stop_string_comes_at_the_end(model):
    free = alone(model, prompt_of(6), GREEDY).text
    params = SamplingParams(temperature=0, max_new_tokens=24, stop=(free[-5:] + "?",))
    request = alone(model, prompt_of(6), params)
    assert request.finish_reason == "length"
    assert request.text == free


def test_ids_of_the_padded_vocabulary_are_never_sampled():
    model = tiny_gpt("gpt2", vocab_size=128)  # the tokenizer has 64 ids
    request = alone(model, prompt_of(5), SamplingParams(temperature=100.0, max_new_tokens=50, seed=0))
    assert len(request.text) == 50


def test_cancelling_frees_the_slot_for_the_next(model):
    engine = Engine(model, CHARACTERS, max_running=1, prefill_chunk=2)
    reading, waiting, last = (engine.submit(prompt_of(10), GREEDY) for _ in range(3))
    engine.step()
    assert not reading.done
    engine.cancel(reading)
    engine.cancel(waiting)
    engine.step()
    assert reading.finish_reason == waiting.finish_reason == "cancelled"
    engine.run()
    assert last.token_ids == alone(model, prompt_of(10), GREEDY).token_ids
    engine.cancel(last)  # no effect: the request has finished
    check_idle(engine)
    assert last.finish_reason == "length"


# --- errors ---


def test_a_callback_that_raises_ends_its_own_request_only(model):
    engine = Engine(model, CHARACTERS, max_running=3)
    error = RuntimeError("the reader has gone")
    seen = []

    def on_text(piece):
        seen.append(piece)
        if len(seen) == 4:
            raise error

    fine, broken, after = (
        engine.submit(prompt_of(7), GREEDY, on_text=call) for call in (None, on_text, None)
    )
    engine.run()
    assert broken.done
    assert broken.error is error
    assert broken.finish_reason is None
    assert len(broken.token_ids) == 4
    for request in (fine, after):
        assert request.token_ids == alone(model, prompt_of(7), GREEDY).token_ids
    check_idle(engine)


@pytest.mark.parametrize("fails_in", ["prefill", "decode"])
def test_a_model_that_raises_ends_the_requests_in_that_forward(model, fails_in):
    engine = Engine(model, CHARACTERS, max_running=2)
    running = engine.submit(prompt_of(4), GREEDY)
    engine.step()
    joining = engine.submit(prompt_of(9), GREEDY)
    waiting = engine.submit(prompt_of(5), GREEDY)

    def run_out_of_memory(module, args, output):
        if (output.shape[1] > 1) == (fails_in == "prefill"):
            raise torch.OutOfMemoryError("no memory left")

    hook = model.blocks[1].register_forward_hook(run_out_of_memory)
    engine.step()
    hook.remove()
    engine.run()
    failed = [joining] if fails_in == "prefill" else [running, joining]
    for request in (running, joining, waiting):
        if request in failed:
            assert request.done
            assert isinstance(request.error, torch.OutOfMemoryError)
        else:
            assert request.token_ids == alone(model, request.prompt_ids, GREEDY).token_ids
    check_idle(engine)


# --- threads ---


def test_submitting_and_cancelling_from_callbacks(model):
    engine = Engine(model, CHARACTERS, max_running=1)
    requests = []

    def on_text(piece):
        if len(requests) < 3:
            requests.append(engine.submit(prompt_of(5), GREEDY, on_text=on_text))
            engine.cancel(requests[-2])

    requests.append(engine.submit(prompt_of(5), GREEDY, on_text=on_text))
    engine.run()
    assert [r.finish_reason for r in requests] == ["cancelled", "cancelled", "length"]


def test_many_threads_submit_and_cancel_while_one_steps(model):
    engine = Engine(model, CHARACTERS, max_running=4, prefill_chunk=8)
    expected = {length: alone(model, prompt_of(length), GREEDY).token_ids for length in range(1, 30)}
    closing = threading.Event()
    failures = []

    def serve():
        while engine.step() or not closing.is_set():
            pass

    def user(seed):
        rng = torch.Generator().manual_seed(seed)
        for turn in range(6):
            length = int(torch.randint(1, 30, (), generator=rng))
            request = engine.submit(prompt_of(length), GREEDY)
            if turn % 3 == 2:
                engine.cancel(request)
            if not request.wait(timeout=60):
                failures.append("a request never ended")
            tokens = expected[length][: len(request.token_ids)] if turn % 3 == 2 else expected[length]
            if request.error is not None or request.token_ids != tokens:
                failures.append((length, request.error, request.token_ids))

    server = threading.Thread(target=serve)
    users = [threading.Thread(target=user, args=(seed,)) for seed in range(8)]
    server.start()
    for thread in users:
        thread.start()
    for thread in users:
        thread.join()
    closing.set()
    server.join()
    assert failures == []
    check_idle(engine)
