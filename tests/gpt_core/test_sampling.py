import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from gpt_core.errors import InputError
from gpt_core.sampling import SamplingParams, probabilities, sample


@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    seed=st.integers(0, 10_000),
    size=st.integers(1, 300),
    distinct=st.integers(1, 300),
    temperature=st.floats(0.05, 5),
    top_k=st.integers(0, 320),
    top_p=st.floats(0.01, 1.0),
)
def test_top_k_and_top_p_leave_what_transformers_leaves(seed, size, distinct, temperature, top_k, top_p):
    rng = torch.Generator().manual_seed(seed)
    # few distinct values make ties, where "the k best" is a matter of convention
    logits = torch.randn(distinct, generator=rng)[torch.randint(distinct, (size,), generator=rng)] * 4
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)

    theirs = TemperatureLogitsWarper(temperature)(None, logits[None])
    if top_k:
        theirs = TopKLogitsWarper(top_k)(None, theirs)
    if top_p < 1:
        theirs = TopPLogitsWarper(top_p)(None, theirs)
    theirs = theirs[0].softmax(-1)

    ours = probabilities(logits, params)
    assert torch.equal(ours > 0, theirs > 0)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_draws_follow_the_probabilities():
    logits = torch.tensor([2.0, 1.5, 0.0, -1.0, 1.0, -8.0])
    params = SamplingParams(temperature=0.8, top_k=4, top_p=0.95)
    expected = probabilities(logits, params)
    rng = torch.Generator().manual_seed(0)
    n = 20_000
    counts = torch.bincount(torch.tensor([sample(logits, params, rng) for _ in range(n)]), minlength=6)
    assert torch.equal(counts > 0, expected > 0)
    kept = expected > 0
    chi2 = ((counts[kept] - n * expected[kept]) ** 2 / (n * expected[kept])).sum()
    assert chi2 < 16.3  # 3 degrees of freedom at most: exceeded once in a thousand seeds


def test_greedy_is_argmax_and_the_limit_of_low_temperatures():
    logits = torch.randn(1000, generator=torch.Generator().manual_seed(1)) * 50
    best = int(logits.argmax())
    assert sample(logits, SamplingParams(temperature=0)) == best
    for temperature in (1e-2, 1e-30, 5e-324):
        assert sample(logits, SamplingParams(temperature=temperature)) == best
    assert sample(logits, SamplingParams(temperature=5.0, top_k=1)) == best
    assert sample(logits, SamplingParams(temperature=5.0, top_p=1e-9)) == best


def test_half_precision_logits_are_computed_in_float32():
    logits = torch.zeros(4096, dtype=torch.bfloat16)  # bfloat16 sums of 1/4096 stop growing at 1/16
    kept = probabilities(logits, SamplingParams(top_p=0.5)) > 0
    assert abs(int(kept.sum()) - 2048) <= 1


def test_sampling_does_not_touch_its_input():
    logits = torch.randn(50, dtype=torch.float32)
    before = logits.clone()
    sample(logits, SamplingParams(temperature=1.0, top_k=5, top_p=0.5))
    assert torch.equal(logits, before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_overflowed_is_an_error_and_not_a_token(bad, temperature):
    logits = torch.zeros(10)
    logits[3] = bad
    with pytest.raises(FloatingPointError):
        sample(logits, SamplingParams(temperature=temperature))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("stop", ("",)),
        ("stop", "###"),
        ("seed", -1),
        ("seed", 2**63),
    ],
)
def test_a_bad_parameter_is_named(name, value):
    with pytest.raises(InputError, match=f"^{name} is "):
        SamplingParams(**{name: value})
