"""The second stage: gains of the best candidates, and what they change."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from gpt_core.common.errors import InputError
from index import Index
from serve.answers.answer import answer_question, second_stage_of
from serve.answers.candidates import find_candidates
from serve.answers.features import features
from serve.answers.likelihood import TEMPLATE, Likelihood
from serve.answers.question import Question
from serve.answers.ranker import N_RESCORED, SecondStage, Thresholds, ranker_for, rescored
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


def test_a_gain_is_what_the_sentence_adds_to_the_questions_log_probability(encoder, case):
    _, candidates, _ = case
    gains = Likelihood(encoder)(QUESTION, candidates[:3])
    alone, n = log_probability(encoder, TEMPLATE.format(document=candidates[0].hit.title), QUESTION)
    for candidate, gain in zip(candidates, gains, strict=False):
        after, _ = log_probability(
            encoder, TEMPLATE.format(document=f"{candidate.hit.title}\n{candidate.text}"), QUESTION
        )
        assert gain == pytest.approx((after - alone) / n, abs=1e-4)


@given(
    scores=arrays.arrays(np.float64, N_RESCORED, elements=st.floats(-20, 20, **FINITE)),
    gains=arrays.arrays(np.float64, N_RESCORED, elements=st.floats(-20, 20, **FINITE)),
)
def test_rescoring_keeps_the_total_probability(scores, gains):
    new = rescored(scores, gains, 0.5)
    assert np.logaddexp.reduce(new) == pytest.approx(np.logaddexp.reduce(scores), abs=1e-9)
    assert np.ptp((new - scores) - 0.5 * gains) < 1e-9


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
    second = SecondStage(1e3, {"bias": 2.0, "gain": 1.0}, {"bias": -2.0}, Thresholds(0.5, 0.5), {})
    after = replace(ranker, second=second).rank(question, candidates, matrix, last_first)
    assert after.candidates[0] is before.candidates[N_RESCORED - 1]
    assert after.right == pytest.approx(1 / (1 + np.exp(-2.75)))  # the gain of the best one is 3/4
    assert after.present == pytest.approx(1 / (1 + np.exp(2)))
    assert sum(after.probabilities) == pytest.approx(1)


def test_an_embedder_without_fitted_weights_has_no_second_stage(index):
    with pytest.raises(InputError, match="has no second stage"):
        second_stage_of(index)


def test_the_fitted_thresholds_of_the_second_stage_count(index, monkeypatch):
    fitted = ranker_for("en", None)
    for threshold, kind in ((0.0, "quote"), (1.0, "not_found")):
        second = SecondStage(0.0, {}, {}, Thresholds(0.0, threshold), {})
        with monkeypatch.context() as patch:
            patch.setattr(
                "serve.answers.answer.ranker_for", lambda *_, second=second: replace(fitted, second=second)
            )
            gains = second_stage_of(index) if threshold else Likelihood(index.encoder)
            assert answer_question(QUESTION, index, gains=gains).kind == kind
