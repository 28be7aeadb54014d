import pytest
import torch

from gpt_core.common.errors import InputError
from gpt_core.generation.engine import Engine
from gpt_core.generation.sampling import SamplingParams
from gpt_core.model.config import GPTConfig
from gpt_core.model.gpt import GPT
from gpt_core.tokenizer.tokenizer import Tokenizer

BLOCK = 64
CHARACTERS = Tokenizer.from_characters("".join(chr(c) for c in range(32, 96)))
SHAPE = GPTConfig.gpt2(vocab_size=64, block_size=BLOCK, n_layer=1, n_head=2, n_embd=16)


def test_nan_logits_fail_the_request_instead_of_giving_tokens():
    model = GPT(SHAPE)
    with torch.no_grad():
        model.norm.weight.fill_(float("nan"))
    engine = Engine(model, CHARACTERS)
    request = engine.submit("AB", SamplingParams(temperature=0, max_new_tokens=5))
    engine.run()
    assert isinstance(request.error, FloatingPointError)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "empty"),
        ([], "empty"),
        ("A" * BLOCK, f"has {BLOCK} tokens"),
        ([1, 64], "from 1 to 64"),
        ([-1, 5], "from -1 to 5"),
    ],
)
def test_a_bad_prompt_is_refused_at_once(prompt, message):
    engine = Engine(GPT(SHAPE), CHARACTERS)
    with pytest.raises(InputError, match=message):
        engine.submit(prompt)
    assert not engine.step()  # nothing was queued


@pytest.mark.parametrize(
    "setting", [{"max_running": 0}, {"prefill_chunk": 0}, {"context": BLOCK + 1}, {"draft": -1}]
)
def test_a_bad_engine_setting_is_rejected(setting):
    with pytest.raises(InputError, match=f"^{next(iter(setting))} is "):
        Engine(GPT(SHAPE), CHARACTERS, **setting)


def test_prompt_ids_of_the_padded_vocabulary_are_rejected():
    """Padding rows of the embedding stand for no token, and tiktoken cannot decode their ids."""
    tokenizer = Tokenizer.from_pretrained("gpt2")
    model = GPT(GPTConfig.gpt2(vocab_size=50304, block_size=8, n_layer=1, n_head=1, n_embd=8))
    engine = Engine(model, tokenizer)
    with pytest.raises(InputError, match="token ids from 5 to 50300; expected 0 to 50256"):
        engine.submit([5, 50300])
    engine.submit([50256], SamplingParams(max_new_tokens=1))
    engine.run()
