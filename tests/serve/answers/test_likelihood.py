"""The second stage: the question's log-probability after the best candidates, and what it changes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from gpt_core.common.errors import InputError
from index import Index
from serve.answers.answer import second_stage_of
from serve.answers.candidates import find_candidates
from serve.answers.features import features
from serve.answers.likelihood import TEMPLATE, Likelihood
from serve.answers.question import Question
from serve.answers.ranker import N_RESCORED, ranker_for, rescored
from tests.serve.conftest import DOCUMENTS, QUESTION

FINITE = {"allow_nan": False, "allow_infinity": False}


@pytest.fixture(scope="module")
def index(tmp_path_factory, encoder):
    with Index.create(tmp_path_factory.mktemp("second") / "index", encoder) as index:
        index.add(DOCUMENTS)
        yield index


@pytest.fixture(scope="module")
def case(index):
    question = Question.of(QUESTION, index.idf)
    candidates = find_candidates(QUESTION, index.search(QUESTION, k=4), lambda doc_id: index.get(doc_id).text)
    return question, candidates, features(question, candidates)


def log_probability(encoder, before, text):
    """log p(text | before), by one plain forward."""
    ids, after = encoder.tokenizer.encode(before), encoder.tokenizer.encode(text)
    with torch.no_grad():
        logits = encoder.model(torch.tensor([[*ids, *after]])).logits[0].log_softmax(-1)
    return sum(float(logits[len(ids) - 1 + i, token]) for i, token in enumerate(after)), len(after)


def test_a_likelihood_is_the_mean_log_probability_of_the_questions_tokens(encoder, case):
    _, candidates, _ = case
    found = Likelihood(encoder)(QUESTION, candidates[:3])
    for candidate, likelihood in zip(candidates, found, strict=False):
        before = TEMPLATE.format(document=f"{candidate.hit.title}\n{candidate.text}")
        total, n = log_probability(encoder, before, QUESTION)
        assert likelihood == pytest.approx(total / n, abs=1e-4)


@given(
    scores=arrays.arrays(np.float64, N_RESCORED, elements=st.floats(-20, 20, **FINITE)),
    likelihoods=arrays.arrays(np.float64, N_RESCORED, elements=st.floats(-20, 20, **FINITE)),
)
def test_rescoring_keeps_the_total_probability(scores, likelihoods):
    new = rescored(scores, likelihoods, 0.5)
    assert np.logaddexp.reduce(new) == pytest.approx(np.logaddexp.reduce(scores), abs=1e-9)
    assert np.ptp((new - scores) - 0.5 * likelihoods) < 1e-9


def test_only_the_best_candidates_change_their_places_and_only_with_fitted_weights(case):
    question, candidates, matrix = case
    assert len(candidates) > N_RESCORED
    ranker = ranker_for("en", None)
    before = ranker.rank(question, candidates, matrix)

    def last_first(text, best):
        assert text == QUESTION
        assert best == before.candidates[:N_RESCORED]
        return np.arange(len(best)) / len(best)

    assert ranker.rank(question, candidates, matrix, last_first) == before  # no second stage was fitted
    after = replace(ranker, likelihood_weight=1e3).rank(question, candidates, matrix, last_first)
    assert after.candidates[0] is before.candidates[N_RESCORED - 1]
    assert after.candidates[N_RESCORED:].count(before.candidates[0]) == 1
    assert sum(after.probabilities[:1]) == pytest.approx(sum(before.probabilities[:N_RESCORED]))
    assert after.right != before.right


def test_an_embedder_without_fitted_weights_has_no_second_stage(index):
    with pytest.raises(InputError, match="has no second stage"):
        second_stage_of(index)
