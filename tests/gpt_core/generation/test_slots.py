import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_core.generation.slots import Slots, n_shared
from gpt_core.model.cache import Cache
from gpt_core.model.config import GPTConfig
from gpt_core.model.gpt import GPT

SHAPE = GPTConfig(
    vocab_size=8, block_size=32, n_layer=2, n_head=2, n_kv_head=1, n_embd=16, head_dim=8, n_inner=16
)
texts = st.lists(st.integers(0, 2), min_size=1, max_size=20)


@settings(derandomize=True, deadline=None)
@given(a=st.lists(st.integers(0, 1)), b=st.lists(st.integers(0, 1)), common=st.lists(st.integers(0, 1)))
def test_how_many_first_tokens_two_texts_share(a, b, common):
    a, b = common + a, common + b
    different = [i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y]
    assert n_shared(a, b) == min([*different, len(a), len(b)])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return GPT(SHAPE).eval()


def read(model, slots, slot, ids):
    with torch.inference_mode():
        model(torch.tensor([ids]), cache=slots.cache.rows([slot]), logits=False)
    slots.ids[slot] += ids


@settings(derandomize=True, deadline=None, max_examples=40)
@given(events=st.lists(st.tuples(texts, st.integers(0, 2)), max_size=15))
def test_a_reused_slot_equals_a_fresh_prefill_of_its_text(events):
    """Requests start and end in any order; keys and values copied from another slot equal recomputed ones."""
    torch.manual_seed(0)
    model = GPT(SHAPE).eval()
    slots = Slots(Cache(SHAPE, 3))
    running = []
    for prompt, leaves in events:
        if len(running) > leaves:
            slots.release(running.pop(leaves))
        if not slots.any_idle:
            slots.release(running.pop(0))
        best = slots.n_cached(prompt[:-1])
        untouched = {slot: list(slots.ids[slot]) for slot in running}
        slot = slots.take(prompt)
        assert slot not in running
        assert slots.ids[slot] == prompt[:best]  # the longest cached prefix, never with the last token
        running.append(slot)
        read(model, slots, slot, prompt[best:])
        assert untouched == {s: slots.ids[s] for s in untouched}
        for s in range(3):
            fresh = Cache(SHAPE, 1)
            assert slots.cache.lengths[s] == len(slots.ids[s])
            if slots.ids[s]:
                with torch.inference_mode():
                    model(torch.tensor([slots.ids[s]]), cache=fresh.rows([0]), logits=False)
            torch.testing.assert_close(slots.cache.k[:, s], fresh.k[:, 0], atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(slots.cache.v[:, s], fresh.v[:, 0], atol=1e-6, rtol=1e-5)


def test_the_least_recently_used_text_is_evicted_first(model):
    slots = Slots(Cache(SHAPE, 3))
    for prompt in ([1, 1, 1], [2, 2, 2], [3, 3, 3]):
        slot = slots.take(prompt)
        read(model, slots, slot, prompt)
        slots.release(slot)
    again = slots.take([1, 1, 1, 4])  # the oldest text is now the most recently used,
    slots.release(again)
    slots.release(slots.take([5]))  # so [5] replaces [2, 2, 2]
    assert sorted(map(tuple, slots.ids)) == [(), (1, 1, 1), (3, 3, 3)]


def test_one_slot_serves_a_conversation_without_copies(model):
    slots = Slots(Cache(SHAPE, 1))
    slot = slots.take([1, 2, 3])
    read(model, slots, slot, [1, 2, 3])
    slots.release(slot)
    assert slots.take([1, 2, 3, 4, 5]) == slot
    assert slots.ids == [[1, 2, 3]]
    slots.release(slot)
    slots.take([1, 7, 7])
    assert slots.ids == [[1]]
    assert not slots.cache.k[:, 0, :, 1:].any()  # the rest is zeroed, not only ignored
