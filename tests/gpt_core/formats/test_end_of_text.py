"""Where generation ends: the ids of config.json, of the tokenizer and of generation_config.json, held against
transformers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from gpt_core import GPT, Engine, InputError, SamplingParams, Tokenizer
from gpt_core.formats.export import export_gguf, export_hf
from gpt_core.training.pretraining.config import PretrainConfig
from gpt_core.training.pretraining.pretrain import build_model
from tests.tiny_models import save_model

PROMPT = [40, 41, 42]
N_TOKENS = 20


def generated(model: GPT, tokenizer: Tokenizer) -> list[int]:
    engine = Engine(model, tokenizer)
    request = engine.submit(PROMPT, SamplingParams(max_new_tokens=N_TOKENS, temperature=0))
    engine.run()
    return request.token_ids


def generated_by_transformers(folder: Path) -> list[int]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = model.generate(torch.tensor([PROMPT]), max_new_tokens=N_TOKENS, do_sample=False, pad_token_id=0)
    return ids[0, len(PROMPT) :].tolist()


def set_keys(path: Path, **values: object) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | values))


@pytest.fixture
def chat_model(tmp_path) -> tuple[Path, int]:
    """A folder whose generation_config.json alone names the token that ends a turn, and that token.

    The model generates that token third.
    """
    folder = save_model(tmp_path / "model", "qwen3")
    model = GPT.from_pretrained(folder)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    model.config = replace(model.config, eos_id=319)
    model.save_pretrained(folder)
    token = generated(model, Tokenizer.from_pretrained(folder))[2]
    set_keys(folder / "generation_config.json", eos_token_id=[319, token])
    return folder, token


def test_a_turn_ends_where_only_generation_config_says_so(chat_model, tmp_path):
    folder, token = chat_model
    model, tokenizer = GPT.from_pretrained(folder), Tokenizer.from_pretrained(folder)
    expected = generated_by_transformers(folder)
    assert expected[-1] == token
    assert len(expected) == 3
    assert generated(model, tokenizer) == expected
    # the ids survive an export to each format, and a checkpoint of a model that training started from this one
    export_hf(folder, tmp_path / "hf")
    file = export_gguf(folder, tmp_path / "gguf")
    trained = build_model(PretrainConfig(init_from=str(folder)), tokenizer, None)
    trained.save_pretrained(tmp_path / "step-1")
    tokenizer.save(tmp_path / "step-1")
    for out in (tmp_path / "hf", tmp_path / "step-1"):
        assert generated_by_transformers(out) == expected
        (out / "generation_config.json").unlink()  # config.json has all of the ids, too
        assert generated_by_transformers(out) == expected
    for out in (tmp_path / "hf", tmp_path / "step-1", file.parent):
        again, own = GPT.from_pretrained(out), Tokenizer.from_pretrained(out)
        assert {*again.config.eos_ids, *own.eos_ids} == {319, token, tokenizer.eos_id}
        ended = generated(again, own)
        assert ended[-1] == token
        assert len(ended) == 3


def test_the_tokenizers_end_token_is_exported_as_the_models(chat_model, tmp_path):
    folder, token = chat_model
    set_keys(folder / "generation_config.json", eos_token_id=None)
    tokenizer = Tokenizer.from_pretrained(folder)
    tokenizer.eos_id = token
    tokenizer.save(folder)
    assert generated(GPT.from_pretrained(folder), tokenizer)[-1] == token
    export_hf(folder, tmp_path / "hf")
    assert GPT.from_pretrained(tmp_path / "hf").config.eos_ids == (319, token)
    assert generated_by_transformers(tmp_path / "hf")[-1] == token


@pytest.mark.parametrize("eos", ["</s>", [1, "2"], True, 1.5, {"id": 1}])
def test_a_generation_config_with_other_values_is_refused(chat_model, eos):
    folder, _ = chat_model
    set_keys(folder / "generation_config.json", eos_token_id=eos)
    with pytest.raises(
        InputError, match=r"generation_config\.json: eos_token_id is .*; expected a token's id"
    ):
        GPT.from_pretrained(folder)


def test_gguf_names_three_ends_and_those_that_llama_cpp_knows(chat_model, tmp_path):
    folder, token = chat_model
    content = json.loads((folder / "tokenizer.json").read_text())
    end = {"id": 319, "content": "<|end|>", "special": True, "normalized": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    merged = next(text for text, i in content["model"]["vocab"].items() if i == 319)
    content["model"]["vocab"] = {t: i for t, i in content["model"]["vocab"].items() if t != merged}
    content["model"]["merges"] = [pair for pair in content["model"]["merges"] if "".join(pair) != merged]
    content["added_tokens"].append(end | flags)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    others = [i for i in (100, 101, 102) if i != token]
    set_keys(folder / "generation_config.json", eos_token_id=[319, token, others[0], 9999])
    back = GPT.from_pretrained(export_gguf(folder, tmp_path / "gguf").parent)
    assert set(back.config.eos_ids) == {1, 319, token, others[0]}
    set_keys(folder / "generation_config.json", eos_token_id=[319, token, *others[:2]])
    with pytest.raises(InputError, match="has 5 end-of-text tokens, of which GGUF cannot name"):
        export_gguf(folder, tmp_path / "more")
