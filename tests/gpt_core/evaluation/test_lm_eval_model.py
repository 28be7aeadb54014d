"""The same results in lm-eval as those of its own Hugging Face model."""

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders

from gpt_core.evaluation.lm_eval_model import LMEvalModel
from tests.tiny_models import save_model

LONG = "to know what you do not know is knowledge. " * 40


def requests(kind, *arguments):
    return [Instance(kind, {}, args, i) for i, args in enumerate(arguments)]


@pytest.fixture(scope="module", params=["gpt2", "qwen3"])
def models(request, tmp_path_factory):
    folder = save_model(tmp_path_factory.mktemp("lm-eval") / request.param, request.param)
    backend = RustTokenizer.from_file(str(folder / "tokenizer.json"))
    backend.decoder = decoders.ByteLevel()
    backend.save(str(folder / "tokenizer.json"))
    return LMEvalModel(folder, "cpu"), HFLM(str(folder), device="cpu", batch_size=2, dtype="float32")


def test_log_likelihoods(models):
    asked = [("to know", " what"), ("", "you know"), ("知之 ", "为知之"), (LONG, " end"), ("a", "b c d")]
    ours, theirs = (model.loglikelihood(requests("loglikelihood", *asked)) for model in models)
    for (total, greedy), (their_total, their_greedy) in zip(ours, theirs, strict=True):
        assert total == pytest.approx(their_total, abs=2e-4)
        assert greedy == their_greedy


def test_log_likelihoods_of_whole_texts(models):
    asked = [("to know what you know",), (LONG * 3,), ("x",)]
    ours, theirs = (
        model.loglikelihood_rolling(requests("loglikelihood_rolling", *asked)) for model in models
    )
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_texts_up_to_a_stop_string(models):
    asked = [("to know", {"until": ["e"], "max_gen_toks": 12}), ("知", {"until": "\n\n", "max_gen_toks": 4})]
    ours, theirs = (model.generate_until(requests("generate_until", *asked)) for model in models)
    assert ours == theirs
