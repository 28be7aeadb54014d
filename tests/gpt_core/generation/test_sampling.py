import dataclasses
import math

import numpy as np
import pytest
import torch
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import (
    GPT2LMHeadModel,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gpt_core.common.errors import InputError
from gpt_core.generation.sampling import SamplingParams, candidates, check_vocabulary, sample, token_logprobs


def full(ids, probability, size):
    """The candidates' probabilities as a vector (size,) over the vocabulary."""
    assert (np.diff(ids) > 0).all()
    every = torch.zeros(size)
    every[torch.from_numpy(ids)] = torch.from_numpy(probability)
    return every


@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    seed=st.integers(0, 10_000),
    size=st.integers(1, 300),
    distinct=st.integers(1, 300),
    temperature=st.floats(0.05, 5),
    top_k=st.integers(0, 320),
    top_p=st.floats(0.01, 1.0),
    min_p=st.sampled_from([0.0, 0.001, 0.05, 0.3, 1.0]),
    penalty=st.sampled_from([1.0, 0.8, 1.3, 5.0]),
    biases=st.lists(st.tuples(st.integers(0, 299), st.floats(-100, 100)), max_size=4),
)
def test_what_is_left_is_what_transformers_leaves(
    seed, size, distinct, temperature, top_k, top_p, min_p, penalty, biases
):
    rng = torch.Generator().manual_seed(seed)
    # few distinct values make ties, where "the k best" is a matter of convention
    logits = torch.randn(distinct, generator=rng)[torch.randint(distinct, (size,), generator=rng)] * 4
    history = torch.randint(size, (7,), generator=rng)
    biases = {token: bias for token, bias in biases if token < size}

    theirs = logits[None]
    if biases:
        theirs = SequenceBiasLogitsProcessor({(t,): b for t, b in biases.items()})(history[None], theirs)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(history[None], theirs)
    theirs = TemperatureLogitsWarper(temperature)(None, theirs)
    if top_k:
        theirs = TopKLogitsWarper(top_k)(None, theirs)
    warped = theirs[0]
    before = warped.sort().values.flip(0).double().softmax(-1).cumsum(-1)
    assume(top_p == 1 or (before - top_p).abs().min() > 1e-6)  # closer than that, rounding decides
    if top_p < 1:
        theirs = TopPLogitsWarper(top_p)(None, theirs)
    theirs = MinPLogitsWarper(min_p)(None, theirs)[0].softmax(-1)

    params = SamplingParams(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=penalty,
        logit_bias=biases,
    )
    ours = full(*candidates(logits, params, history.tolist()), size)
    torch.testing.assert_close(ours.sort().values, theirs.sort().values, atol=1e-6, rtol=1e-5)
    other = (ours > 0) != (theirs > 0)  # top_p may cut among equal logits: any of them may stay
    assert len(warped[other].unique()) <= 1


@pytest.mark.parametrize("do_sample", [True, False])
def test_the_processing_order_is_that_of_transformers_generate(do_sample):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=200, n_positions=64, n_layer=1, n_head=2, n_embd=32)
    )
    with torch.no_grad():
        model.transformer.wte.weight *= 20
    prompt = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    drawn = {"temperature": 1.7, "top_k": 90, "top_p": 0.9, "min_p": 0.02} if do_sample else {}
    given = {"repetition_penalty": 1.9}
    biases = {3: -4.0, 7: 5.0, 100: -100.0}
    out = model.generate(
        prompt,
        do_sample=do_sample,
        max_new_tokens=20,
        pad_token_id=0,
        sequence_bias={(token,): bias for token, bias in biases.items()},
        output_scores=True,
        output_logits=True,
        return_dict_in_generate=True,
        **drawn,
        **given,
    )
    params = SamplingParams(**({"temperature": 0.0} | drawn | given), logit_bias=biases)
    for step, (logits, scores) in enumerate(zip(out.logits, out.scores, strict=True)):
        history = out.sequences[0, : prompt.shape[1] + step].tolist()
        if do_sample:
            ours = full(*candidates(logits[0], params, history), 200)
            theirs = scores[0].softmax(-1)
            assert torch.equal(ours > 0, theirs > 0)
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
        else:
            assert sample(logits[0], params, history=history) == out.sequences[0, len(history)]


def test_draws_follow_the_probabilities():
    logits = torch.tensor([2.0, 1.5, 0.0, -1.0, 1.0, -8.0])
    params = SamplingParams(temperature=0.8, top_k=4, top_p=0.95)
    expected = full(*candidates(logits, params), 6)
    rng = torch.Generator().manual_seed(0)
    n = 20_000
    counts = torch.bincount(torch.tensor([sample(logits, params, rng) for _ in range(n)]), minlength=6)
    assert torch.equal(counts > 0, expected > 0)
    kept = expected > 0
    chi2 = ((counts[kept] - n * expected[kept]) ** 2 / (n * expected[kept])).sum()
    assert chi2 < 16.3  # 3 degrees of freedom at most: exceeded once in a thousand seeds


def test_draws_hardly_depend_on_the_last_bits_of_the_logits():
    """The same seed gives the same text alone and in a batch, whose logits differ by rounding."""
    rng = torch.Generator().manual_seed(2)
    logits = torch.randn(1000, generator=rng).bfloat16().float()  # with ties
    others = logits + 1e-6 * torch.randn(1000, generator=rng)
    for params in (SamplingParams(), SamplingParams(top_p=0.9, min_p=0.01), SamplingParams(temperature=2.0)):
        draws = [
            [sample(x, params, torch.Generator().manual_seed(seed)) for seed in range(500)]
            for x in (logits, others)
        ]
        assert len(set(draws[0])) > 100
        assert sum(a != b for a, b in zip(*draws, strict=True)) <= 5


def test_greedy_is_argmax_and_the_limit_of_low_temperatures():
    logits = torch.randn(1000, generator=torch.Generator().manual_seed(1)) * 50
    best = int(logits.argmax())
    assert sample(logits, SamplingParams(temperature=0)) == best
    for temperature in (1e-2, 1e-30, 5e-324):
        assert sample(logits, SamplingParams(temperature=temperature)) == best
    assert sample(logits, SamplingParams(temperature=5.0, top_k=1)) == best
    assert sample(logits, SamplingParams(temperature=5.0, top_p=1e-9)) == best
    assert sample(logits, SamplingParams(temperature=5.0, top_p=1e-300)) == best
    assert sample(logits, SamplingParams(temperature=5.0, min_p=1)) == best
    for params in (
        SamplingParams(temperature=0),
        SamplingParams(top_k=1, top_p=0.5),
        SamplingParams(min_p=1.0),
    ):
        assert sample(torch.tensor([-1e4, 3e38, -3e38, -torch.inf]), params) == 1


def test_greedy_obeys_bias_and_penalty():
    logits = torch.tensor([1.0, 3.0, 2.9, -1.0])
    assert sample(logits, SamplingParams(temperature=0, logit_bias={1: -0.2})) == 2
    assert sample(logits, SamplingParams(temperature=0, logit_bias={3: 100})) == 3
    for penalty in (1.5, 2):
        penalised = SamplingParams(temperature=0, repetition_penalty=penalty)
        assert sample(logits, penalised) == 1
        assert sample(logits, penalised, history=[0, 1, 1, 1]) == 2  # however often the token occurs


def test_logprobs_are_those_of_the_raw_logits():
    logits = torch.randn(500, generator=torch.Generator().manual_seed(4)).bfloat16() * 3  # with ties
    expected = logits.double().log_softmax(-1)
    token, logprob, best = token_logprobs(logits, 77, 5)
    assert token == 77
    assert logprob == pytest.approx(expected[77].item(), abs=1e-5)
    by_rank = sorted(range(500), key=lambda i: (-expected[i].item(), i))
    assert [i for i, _ in best] == by_rank[:5]
    assert [p for _, p in best] == pytest.approx(expected[by_rank[:5]].tolist(), abs=1e-5)
    assert token_logprobs(logits, 77, 0).best == []
    assert [i for i, _ in token_logprobs(logits, 77, 501).best] == by_rank
    assert token_logprobs(torch.tensor([0.0, -torch.inf]), 1, 2) == (1, -math.inf, [(0, 0.0), (1, -math.inf)])


def test_a_bias_outside_the_vocabulary_is_refused():
    params = SamplingParams(logit_bias={49: 1.0, 50: 1})
    check_vocabulary(params, 51)
    with pytest.raises(InputError, match="logit_bias names token 50; expected ids from 0 to 49"):
        check_vocabulary(params, 50)


def test_parameters_cannot_change_under_a_running_request():
    biases = {1: 2.0}
    params = SamplingParams(logit_bias=biases)
    biases[3] = 4.0
    assert dict(params.logit_bias) == {1: 2.0}
    with pytest.raises(TypeError):
        params.logit_bias[5] = 1.0
    assert dataclasses.replace(params, seed=3).logit_bias == {1: 2.0}


def test_half_precision_logits_are_computed_in_float32():
    logits = torch.zeros(4096, dtype=torch.bfloat16)  # bfloat16 sums of 1/4096 stop growing at 1/16
    ids, probability = candidates(logits, SamplingParams(top_p=0.5))
    assert abs(len(ids) - 2048) <= 1
    assert probability.sum() == pytest.approx(1, abs=1e-5)


def test_sampling_does_not_touch_its_input():
    logits = torch.randn(50, dtype=torch.float32)
    before = logits.clone()
    sample(logits, SamplingParams(top_k=5, top_p=0.5, min_p=0.1), history=[1])
    sample(logits, SamplingParams(temperature=0, repetition_penalty=2, logit_bias={2: 3}), history=[1])
    token_logprobs(logits, 1, 3)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_raise(bad, temperature):
    logits = torch.zeros(10)
    logits[3] = bad
    with pytest.raises(FloatingPointError):
        sample(logits, SamplingParams(temperature=temperature))
    with pytest.raises(FloatingPointError):
        sample(torch.full((10,), -torch.inf), SamplingParams(temperature=temperature))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", 2.5),
        ("max_new_tokens", "many"),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("stop", ("",)),
        ("stop", "###"),
        ("stop", (3,)),
        ("stop", ["###"]),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", 1.5),
        ("temperature", "hot"),
        ("top_k", 1.5),
        ("top_p", float("nan")),
        ("min_p", -0.1),
        ("min_p", 1.01),
        ("min_p", float("nan")),
        ("repetition_penalty", 0),
        ("repetition_penalty", -1.0),
        ("repetition_penalty", float("inf")),
        ("repetition_penalty", 100.01),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {"a": 1.0}),
        ("logit_bias", {1: float("nan")}),
        ("logit_bias", {1: -float("inf")}),
        ("logit_bias", [(1, 1.0)]),
        ("logprobs", -1),
        ("logprobs", True),
        ("overflow", "truncate"),
    ],
)
def test_a_bad_parameter_is_named(name, value):
    with pytest.raises(InputError, match=f"^{name} is "):
        SamplingParams(**{name: value})


def test_the_defaults_change_no_logit_and_the_bounds_are_allowed():
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0))
    ids = list(range(50))
    assert sample(logits, SamplingParams(temperature=0), history=ids) == int(logits.argmax())
    assert SamplingParams().repetition_penalty == 1
    assert [SamplingParams(repetition_penalty=p).repetition_penalty for p in (0.01, 100)] == [0.01, 100]


def test_overflow_slide_needs_max_new_tokens():
    with pytest.raises(InputError, match=r'^max_new_tokens is None; .* not with overflow="slide"'):
        SamplingParams(max_new_tokens=None, overflow="slide")
    assert SamplingParams(max_new_tokens=None).max_new_tokens is None
