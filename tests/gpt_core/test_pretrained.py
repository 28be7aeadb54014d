"""Model folders: exact parity with transformers on random weights, both ways, and what is refused."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from gpt_core import GPT, GPTConfig, InputError
from gpt_core.config import from_hf, to_hf

TINY = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 80}
ROTARY = TINY | {
    "vocab_size": 101,
    "max_position_embeddings": 64,
    "num_key_value_heads": 2,
    "rope_theta": 5000.0,
}
GPT2 = {"vocab_size": 101, "n_positions": 64, "n_embd": 48, "n_layer": 3, "n_head": 4}
MODELS = {
    "gpt2": lambda: transformers.GPT2Config(**GPT2),
    "gpt2-untied": lambda: transformers.GPT2Config(**GPT2, tie_word_embeddings=False),
    "gpt2-wide": lambda: transformers.GPT2Config(**GPT2, n_inner=100),
    "gpt2-erf": lambda: transformers.GPT2Config(**GPT2, activation_function="gelu"),
    "llama-gqa": lambda: transformers.LlamaConfig(**ROTARY),
    "llama-mha-bias-tied": lambda: transformers.LlamaConfig(
        **ROTARY | {"num_key_value_heads": 4}, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
    ),
    "qwen3": lambda: transformers.Qwen3Config(**ROTARY, head_dim=16),
    "qwen3-tied-bias": lambda: transformers.Qwen3Config(
        **ROTARY, head_dim=12, tie_word_embeddings=True, attention_bias=True
    ),
}


@pytest.fixture(params=MODELS)
def theirs(request):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(MODELS[request.param]()).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model


@torch.no_grad()
def test_logits_and_hidden_states_equal_transformers_both_ways(theirs, tmp_path):
    ids = torch.randint(0, 101, (2, 64))
    expected = theirs(ids, output_hidden_states=True)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = GPT.from_pretrained(tmp_path / "theirs")
    out = ours(ids)
    assert (out.logits - expected.logits).abs().max() < 1e-4
    assert (out.hidden - expected.hidden_states[-1]).abs().max() < 1e-4
    for layer in range(3):
        assert (ours(ids, layer=layer).hidden - expected.hidden_states[layer]).abs().max() < 1e-4

    ours.save_pretrained(tmp_path / "ours")
    back, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True, dtype=torch.float32
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert type(back) is type(theirs)
    assert (back.eval()(ids).logits - expected.logits).abs().max() < 1e-6
    assert ours.config == GPT.from_pretrained(tmp_path / "ours").config


def test_a_new_model_survives_its_folder(tmp_path):
    shape = {"vocab_size": 70, "block_size": 32, "n_layer": 2, "n_head": 2, "n_embd": 16}
    for config in (GPTConfig.gpt2(**shape), GPTConfig(**shape, n_kv_head=1, head_dim=8, n_inner=24)):
        model = GPT(config).eval()
        model.save_pretrained(tmp_path)
        again = GPT.from_pretrained(tmp_path)
        assert again.config == config
        for (name, a), b in zip(model.named_parameters(), again.parameters(), strict=True):
            assert torch.equal(a, b), name
            assert b.requires_grad
        assert not list(tmp_path.glob(".*"))
        assert from_hf(to_hf(config)) == config


@pytest.fixture
def folder(tmp_path):
    GPT(GPTConfig.gpt2(vocab_size=70, block_size=32, n_layer=2, n_head=2, n_embd=16)).save_pretrained(
        tmp_path
    )
    return tmp_path


def edit(folder, **changes):
    path = folder / "config.json"
    raw = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in raw.items() if v != "drop"}))


def test_the_bare_models_keys_and_old_mask_buffers_are_read(folder):
    expected = GPT.from_pretrained(folder).state_dict()
    state = {k.removeprefix("transformer."): v for k, v in load_file(folder / "model.safetensors").items()}
    state |= {"h.0.attn.bias": torch.ones(1, 1, 32, 32), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    save_file(state, folder / "model.safetensors")
    again = GPT.from_pretrained(folder).state_dict()
    assert all(torch.equal(expected[k], again[k]) for k in expected)


def test_shards_are_read_and_a_missing_one_is_said(folder):
    state = load_file(folder / "model.safetensors")
    names = sorted(state)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, keys in halves.items():
        save_file({k: state[k] for k in keys}, folder / file)
    where = {k: file for file, keys in halves.items() for k in keys}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    whole = GPT.from_pretrained(folder).state_dict()
    (folder / "model.safetensors").unlink()
    sharded = GPT.from_pretrained(folder).state_dict()
    assert all(torch.equal(whole[k], sharded[k]) for k in whole)
    (folder / "b.safetensors").unlink()
    with pytest.raises(InputError, match=r"b\.safetensors is missing"):
        GPT.from_pretrained(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "model_type 'bert'; expected gpt2, llama or qwen3"),
        ({"activation_function": "relu"}, "activation_function = 'relu'; this GPT computes only 'gelu_new'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
        ({"n_embd": "16"}, "has n_embd = '16'; expected a whole number of at least 1"),
        ({"n_head": 0}, "has n_head = 0; expected a whole number of at least 1"),
        ({"layer_norm_epsilon": "1e-5"}, "has layer_norm_epsilon = '1e-5'; expected a number"),
        ({"n_embd": None}, "lacks the key 'n_embd'"),
        ({"n_embd": "drop"}, "lacks the key 'n_embd'"),
        ({"n_embd": 32}, r"wte.weight has shape \(70, 16\), its config asks for \(70, 32\)"),
        ({"n_layer": 3}, "lacks 16 weights that its config asks for, first blocks.2"),
        ({"n_layer": 1}, "holds 12 weights that its config has no place for, first transformer.h.1"),
    ],
)
def test_configs_that_we_cannot_represent(folder, changes, message):
    edit(folder, **changes)
    with pytest.raises(InputError, match=message):
        GPT.from_pretrained(folder)


def test_rope_scaling_and_sliding_windows_are_refused():
    llama = to_hf(GPTConfig(qk_norm=False))
    with pytest.raises(InputError, match="rope_type = 'llama3'"):
        from_hf(llama | {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}})
    with pytest.raises(InputError, match="rope_type = 'linear'"):
        from_hf(llama | {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}})
    with pytest.raises(InputError, match="rope_scaling = 'linear'; expected an object"):
        from_hf(llama | {"rope_scaling": "linear"})
    with pytest.raises(InputError, match="use_sliding_window = True"):
        from_hf(to_hf(GPTConfig()) | {"use_sliding_window": True})


def test_damaged_and_missing_files(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="is damaged"):
        GPT.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no model\.safetensors"):
        GPT.from_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json"):
        GPT.from_pretrained(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(InputError, match=r"config\.json holds a list; expected an object"):
        GPT.from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match="is not a model folder"):
        GPT.from_pretrained(folder)
    with pytest.raises(InputError, match="no folder or cached model"):
        GPT.from_pretrained("no-such-model")
