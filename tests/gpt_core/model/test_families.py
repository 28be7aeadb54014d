"""Every supported family with random weights: same logits and hidden states as transformers, also with a cache."""

import pytest
import torch
import torch.nn.functional as F
import transformers

from gpt_core import GPT, Cache, Engine, SamplingParams, Tokenizer
from tests.tiny_models import save_model


def rotary(family, rope_parameters, **more):
    kind = getattr(transformers, f"{family}Config")
    return kind(**ROPE | {"head_dim": 12} | more, rope_parameters=rope_parameters)


N_TOKENS = 64  # longer than every sliding window here
GPT2 = {"vocab_size": 101, "n_positions": N_TOKENS, "n_embd": 48, "n_layer": 3, "n_head": 4}
NEO = {
    "vocab_size": 101, "max_position_embeddings": N_TOKENS, "hidden_size": 48, "num_layers": 3, "num_heads": 4,
    "attention_types": [[["global", "local"], 1], [["local"], 1]], "window_size": 7,
}  # fmt: skip
ROTARY = {
    "vocab_size": 101, "max_position_embeddings": N_TOKENS, "hidden_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 80, "rope_theta": 5000.0,
}  # fmt: skip
ROPE = {key: value for key, value in ROTARY.items() if key != "rope_theta"}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
WINDOWS = {"use_sliding_window": True, "sliding_window": 5}
MODELS = {
    "gpt2": lambda: transformers.GPT2Config(**GPT2),
    "gpt2-untied": lambda: transformers.GPT2Config(**GPT2, tie_word_embeddings=False),
    "gpt2-wide": lambda: transformers.GPT2Config(**GPT2, n_inner=100),
    "gpt2-exact-gelu": lambda: transformers.GPT2Config(**GPT2, activation_function="gelu"),
    "gpt2-unscaled": lambda: transformers.GPT2Config(**GPT2, scale_attn_weights=False),
    "neo": lambda: transformers.GPTNeoConfig(**NEO),
    "neo-global": lambda: transformers.GPTNeoConfig(**NEO | {"attention_types": [[["global"], 3]]}),
    "neo-untied-wide": lambda: transformers.GPTNeoConfig(
        **NEO, tie_word_embeddings=False, intermediate_size=100, activation_function="gelu"
    ),
    "llama-gqa": lambda: transformers.LlamaConfig(**ROTARY),
    "llama-mqa-wide-heads": lambda: transformers.LlamaConfig(**ROTARY | {"num_key_value_heads": 1}, head_dim=20),
    "llama-mha-bias-tied": lambda: transformers.LlamaConfig(
        **ROTARY | {"num_key_value_heads": 4}, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
    ),
    "qwen3": lambda: transformers.Qwen3Config(**ROTARY, head_dim=16),
    "qwen3-tied-bias": lambda: transformers.Qwen3Config(
        **ROTARY, head_dim=12, tie_word_embeddings=True, attention_bias=True
    ),
    "qwen3-windows-from-layer-1": lambda: transformers.Qwen3Config(
        **ROTARY, **WINDOWS, head_dim=16, max_window_layers=1
    ),
    "qwen3-window-in-layer-1": lambda: transformers.Qwen3Config(
        **ROTARY, **WINDOWS, head_dim=16, layer_types=["full_attention", "sliding_attention", "full_attention"]
    ),
    "llama-linear": lambda: rotary("Llama", {"rope_type": "linear", "factor": 4.0, "rope_theta": 3e3}),
    "llama-linear-old-spelling": lambda: transformers.LlamaConfig(
        **ROTARY, rope_scaling={"type": "linear", "factor": 2.5}
    ),
    "llama-dynamic": lambda: rotary("Llama", {"rope_type": "dynamic", "factor": 2.0}),
    "llama-llama3": lambda: rotary("Llama", LLAMA3 | {"rope_theta": 5e5, "original_max_position_embeddings": 32}),
    "llama-llama3-old-spelling": lambda: transformers.LlamaConfig(
        **ROTARY, rope_scaling=LLAMA3 | {"original_max_position_embeddings": 16}
    ),
    "llama-longrope": lambda: rotary(
        "Llama", {"rope_type": "longrope", "factor": 2.0, "original_max_position_embeddings": 32}
        | {"short_factor": [1, 1.1, 1.5, 2, 3, 4], "long_factor": [1, 1.1, 1.5, 2, 3, 4]},
    ),
    "llama-yarn-ramp-and-mscale": lambda: rotary(
        "Llama", YARN | {"beta_fast": 4, "beta_slow": 0.5, "mscale": 1.2, "mscale_all_dim": 0.8, "truncate": False}
    ),
    "qwen3-yarn": lambda: rotary("Qwen3", YARN | {"rope_theta": 1e6}),
    "qwen3-yarn-loud-windows": lambda: rotary(
        "Qwen3", YARN | {"attention_factor": 1.3}, **WINDOWS, max_window_layers=1
    ),
}  # fmt: skip


@pytest.fixture(params=MODELS, scope="module")
def theirs(request):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(MODELS[request.param]()).eval()
    with torch.no_grad():
        for p in model.parameters():  # larger than the initialisation, so that errors show
            p.add_(torch.randn_like(p) * 0.1)
    return model


@pytest.fixture(scope="module")
def ours(theirs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(folder)
    return GPT.from_pretrained(folder)


def some_ids(n_rows=2):
    return torch.randint(0, 101, (n_rows, N_TOKENS), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_logits_and_hidden_states_equal_transformers_on_import_and_export(theirs, ours, tmp_path):
    ids = some_ids()
    expected = theirs(ids, output_hidden_states=True)
    out = ours(ids)
    assert (out.logits - expected.logits).abs().max() < 1e-4
    assert (out.hidden - expected.hidden_states[-1]).abs().max() < 1e-4
    for layer in range(3):
        assert (ours(ids, layer=layer).hidden - expected.hidden_states[layer]).abs().max() < 1e-4

    ours.save_pretrained(tmp_path)
    back, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, dtype=torch.float32
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert type(back) is type(theirs)
    assert torch.equal(back.eval()(ids).logits, expected.logits)
    assert ours.config == GPT.from_pretrained(tmp_path).config


@torch.no_grad()
def test_logits_with_a_cache_equal_those_of_one_pass(ours):
    """Two rows, the second a third as long, fed in chunks of several sizes."""
    ids = some_ids()
    expected = ours(ids).logits
    cache = Cache(ours.config, 3)
    fed = [0, 0]
    for n in (9, 1, 1, 2, 20, 1, 30):
        n_new = [n, -(-n // 3)]
        rows = torch.stack([F.pad(ids[b, fed[b] : fed[b] + n_new[b]], (0, n - n_new[b])) for b in range(2)])
        logits = ours(rows, cache=cache.rows([2, 0], n_new)).logits
        assert logits.isfinite().all()
        for b in range(2):
            new = expected[b, fed[b] : fed[b] + n_new[b]]
            assert (logits[b, : n_new[b]] - new).abs().max() < 1e-4
            fed[b] += n_new[b]


@torch.no_grad()
def test_packed_texts_do_not_attend_to_each_other(ours):
    a, b = some_ids()[0, :21], some_ids()[1, :34]
    row = F.pad(torch.cat([a, b]), (5, 4))[None]
    segments = torch.tensor([[-1] * 5 + [0] * 21 + [1] * 34 + [-1] * 4])
    logits = ours(row, segments=segments).logits[0]
    assert (logits[5:26] - ours(a[None]).logits[0]).abs().max() < 1e-4
    assert (logits[26:60] - ours(b[None]).logits[0]).abs().max() < 1e-4


@pytest.mark.parametrize("theirs", ["neo", "qwen3-windows-from-layer-1", "llama-llama3"], indirect=True)
@torch.no_grad()
def test_the_engine_generates_the_same_ids_as_transformers(theirs, ours, tmp_path):
    """Greedy decoding of five prompts, at most three at a time, with chunked prefill and beyond the sliding windows."""
    prompts = [some_ids(5)[b, :n].tolist() for b, n in enumerate((3, 40, 9, 22, 31))]
    engine = Engine(
        ours, Tokenizer.from_pretrained(save_model(tmp_path, "qwen3")), max_running=3, prefill_chunk=16
    )
    ends = [1, 2]  # end-of-text ids of the tokenizer and of the model
    params = SamplingParams(max_new_tokens=24, temperature=0, logit_bias=dict.fromkeys(ends, -1e9))
    requests = [engine.submit(prompt, params) for prompt in prompts]
    engine.run()
    for prompt, request in zip(prompts, requests, strict=True):
        ids = torch.tensor([prompt])
        expected = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, suppress_tokens=ends,
            pad_token_id=0,
        )  # fmt: skip
        assert prompt + request.token_ids == expected[0].tolist()
