"""Model folders: writing, reading, and invalid configs and files. Parity is in test_families.py."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from gpt_core import GPT, GPTConfig, InputError
from gpt_core.formats.huggingface.config import from_hf, to_hf
from gpt_core.model.rope_scaling import RopeScaling


def test_a_saved_model_loads_unchanged(tmp_path):
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


def test_a_saved_alibi_model_loads_unchanged_and_transformers_refuses_it(tmp_path):
    config = GPTConfig.gpt2(
        vocab_size=70, block_size=32, n_layer=2, n_head=2, n_embd=16, position="alibi", window=8, window_layers=(1,),
        eos_id=(1, 2),
    )  # fmt: skip
    model = GPT(config).eval()
    model.save_pretrained(tmp_path)
    again = GPT.from_pretrained(tmp_path)
    assert again.config == config
    ids = torch.randint(0, 70, (1, 32))
    assert torch.equal(again(ids).logits, model(ids).logits)
    with pytest.raises(ValueError, match="model type `zhizhi`"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    for changes, message in (
        ({"position": "rope"}, "position = 'rope'; models of zhizhi have only 'alibi'"),
        ({"n_heads": 3}, "has the key n_heads, which models of zhizhi do not have"),
        ({"dropout": "none"}, "has dropout = 'none'; expected a number"),
        ({"norm_eps": "1e-5"}, "has norm_eps = '1e-5'; expected a number"),
        ({"block_size": True}, "has block_size = True; expected a whole number"),
        ({"eos_id": [[1]]}, r"has eos_id = \[\[1\]\]; expected a token's id"),
        ({"tie_embeddings": 1}, "has tie_embeddings = 1; expected true or false"),
        ({"mlp": ["gelu"]}, r"mlp is \('gelu',\); expected 'swiglu'"),
        ({"n_kv_head": 5}, "n_kv_head is 5; it must divide n_head"),
    ):
        with pytest.raises(InputError, match=message):
            from_hf(to_hf(config) | changes)
    with pytest.raises(KeyError, match="n_layer"):
        from_hf({key: value for key, value in to_hf(config).items() if key != "n_layer"})
    with pytest.raises(InputError, match="n_layer = null"):
        from_hf(to_hf(config) | {"n_layer": None})


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


def test_keys_without_prefix_and_old_mask_buffers_are_read(folder):
    expected = GPT.from_pretrained(folder).state_dict()
    state = {k.removeprefix("transformer."): v for k, v in load_file(folder / "model.safetensors").items()}
    state |= {"h.0.attn.bias": torch.ones(1, 1, 32, 32), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    save_file(state, folder / "model.safetensors")
    again = GPT.from_pretrained(folder).state_dict()
    assert all(torch.equal(expected[k], again[k]) for k in expected)


@pytest.mark.parametrize(
    ("write", "name"), [(save_file, "model.safetensors"), (torch.save, "pytorch_model.bin")]
)
def test_shards_are_read_and_a_missing_shard_is_refused(folder, write, name):
    whole = GPT.from_pretrained(folder).state_dict()
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    suffix = name.rpartition(".")[2]
    halves = {f"a.{suffix}": names[::2], f"b.{suffix}": names[1::2]}
    for file, keys in halves.items():
        write({k: state[k] for k in keys}, folder / file)
    where = {k: file for file, keys in halves.items() for k in keys}
    index = folder / f"{name}.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    sharded = GPT.from_pretrained(folder).state_dict()
    assert all(torch.equal(whole[k], sharded[k]) for k in whole)
    (folder / f"b.{suffix}").unlink()
    with pytest.raises(InputError, match=rf"b\.{suffix} is missing; {name}.index.json names it"):
        GPT.from_pretrained(folder)
    for content, message in (
        ("{", "index.json is not valid JSON"),
        ('{"weight_map": []}', "is not an index of weights"),
        (
            '{"weight_map": {"wte": "../a.bin"}}',
            r"names the file '\.\./a\.bin'; expected names of files in its folder",
        ),
        ('{"weight_map": {"wte": 3}}', "names the file 3; expected names of files in its folder"),
        ('{"weight_map": {"wte": ""}}', "names the file ''; expected names of files in its folder"),
        ("[" * 100_000, "index.json is not valid JSON"),
    ):
        index.write_text(content)
        with pytest.raises(InputError, match=message):
            GPT.from_pretrained(folder)


def test_a_pickle_of_any_dtype_is_read_where_there_are_no_safetensors(folder):
    expected = GPT.from_pretrained(folder).state_dict()
    state = load_file(folder / "model.safetensors")
    half = {k: v.to(torch.float16 if "wte" in k else torch.bfloat16) for k, v in state.items()}
    torch.save({k: torch.zeros_like(v) for k, v in state.items()}, folder / "pytorch_model.bin")
    again = GPT.from_pretrained(folder).state_dict()  # the pickle is ignored
    assert all(torch.equal(expected[k], again[k]) for k in expected)
    (folder / "model.safetensors").unlink()
    torch.save(
        half | {"transformer.h.0.attn.bias": torch.ones(1, 1, 32, 32).bool()}, folder / "pytorch_model.bin"
    )
    again = GPT.from_pretrained(folder).state_dict()
    for name in expected:
        assert again[name].dtype == torch.float32
        torch.testing.assert_close(again[name], expected[name], rtol=1e-2, atol=1e-6)
    (folder / "pytorch_model.bin").write_bytes((folder / "pytorch_model.bin").read_bytes()[:999])
    with pytest.raises(InputError, match=r"pytorch_model\.bin is damaged"):
        GPT.from_pretrained(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "model_type 'bert'; expected gpt2, gpt_neo, llama, qwen3 or zhizhi"),
        ({"activation_function": "relu"}, "activation_function = 'relu'; this GPT computes only 'gelu_new'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
        ({"n_embd": "16"}, "has n_embd = '16'; expected a whole number from 1 to 16777216"),
        ({"n_head": 0}, "has n_head = 0; expected a whole number from 1 to 16777216"),
        ({"n_positions": 10**30}, "has n_positions = 10{30}; expected a whole number from 1 to 16777216"),
        ({"n_layer": 2**40}, "has n_layer = 1099511627776; expected a whole number from 1 to 4096"),
        ({"layer_norm_epsilon": -1}, "norm_eps is -1; expected a number from 0 to 1"),
        ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon = nan; expected a finite number"),
        ({"layer_norm_epsilon": "1e-5"}, "has layer_norm_epsilon = '1e-5'; expected a number"),
        ({"eos_token_id": "</s>"}, "eos_token_id = '</s>'; expected a token's id"),
        ({"eos_token_id": [1, "2"]}, r"eos_token_id = \[1, '2'\]; expected a token's id"),
        ({"bos_token_id": [1]}, r"bos_token_id = \[1\]; expected a token's id"),
        (
            {"quantization_config": {"quant_method": "gptq"}},
            "quantization_config of 'gptq'; this GPT reads weights of",
        ),
        ({"n_embd": None}, "has n_embd = null, which means nothing there"),
        ({"n_embd": "drop"}, "lacks the key 'n_embd'"),
        ({"n_embd": 32}, r"wte.weight has shape \(70, 16\), its config requires \(70, 32\)"),
        ({"n_layer": 3}, "lacks 16 weights that its config requires, first blocks.2"),
        ({"n_layer": 1}, "holds 12 weights that its config does not define, first transformer.h.1"),
    ],
)
def test_unsupported_configs_are_refused(folder, changes, message):
    edit(folder, **changes)
    with pytest.raises(InputError, match=message):
        GPT.from_pretrained(folder)


ORIGINAL = "original_max_position_embeddings"


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "axial"}, "rope_scaling of type 'axial'; this GPT computes default, linear"),
        ({"type": "linear"}, "factor = None in rope_scaling; expected a number"),
        ({"type": "linear", "factor": 0}, "factor = 0,.*expected numbers above 0"),
        ({"rope_type": "llama3", "factor": 8.0}, "low_freq_factor = None in rope_scaling"),
        (
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4, "high_freq_factor": 1},
            "low_freq_factor = 4 and high_freq_factor = 1; expected the first above 0 and below the second",
        ),
        ({"rope_type": "yarn", "factor": "4"}, "factor = '4' in rope_scaling; expected a number"),
        ({"rope_type": "yarn", "truncate": 1}, "truncate = 1 in rope_scaling; expected true or false"),
        ({"rope_type": "yarn", ORIGINAL: 0}, f"{ORIGINAL} = 0; expected a whole number"),
        (
            {"rope_type": "default", "mrope_section": [1]},
            r"mrope_section = \[1\] in rope_scaling; this GPT does not",
        ),
        (
            {"rope_type": "default", "partial_rotary_factor": 0.5},
            "partial_rotary_factor = 0.5; this GPT rotates whole",
        ),
        (
            {"rope_type": "longrope", ORIGINAL: 16, "short_factor": [1.0] * 32, "long_factor": [2.0] * 32},
            "long_factor differs from short_factor",
        ),
        (
            {"rope_type": "longrope", "short_factor": 1, "long_factor": 1},
            "short_factor = 1 in rope_scaling; expected",
        ),
        ("linear", "rope_scaling = 'linear'; expected an object"),
        ({"rope_type": "linear", "factor": float("inf")}, "factor = inf in rope_scaling; expected a number"),
        ({"rope_theta": 0}, "rope_theta is 0; expected a number above 1"),
        ({"rope_theta": float("nan")}, "rope_theta = nan in rope_scaling; expected a number"),
        ({"rope_type": "yarn", "rope_theta": 1, ORIGINAL: 8}, "rope_theta is 1; expected a number above 1"),
        (
            {"rope_type": "longrope", "factor": 2, ORIGINAL: 1},
            f"{ORIGINAL} = 1; expected a whole number from 2",
        ),
    ],
)
def test_unsupported_rope_scaling_is_refused(rope, message):
    with pytest.raises(InputError, match=message):
        from_hf(to_hf(GPTConfig(qk_norm=False)) | {"rope_scaling": rope})


def test_a_partial_rotary_factor_and_too_few_factors_are_refused():
    with pytest.raises(InputError, match=r"partial_rotary_factor = 0\.25"):
        from_hf(to_hf(GPTConfig()) | {"partial_rotary_factor": 0.25})
    with pytest.raises(
        InputError, match="RoPE scaling has 3 factors; expected one for each pair of a head, 32"
    ):
        GPT(GPTConfig(n_layer=1, rope_scaling=RopeScaling("longrope", factors=(1.0, 2.0, 3.0))))


NEO = GPTConfig.gpt2(
    vocab_size=70, n_layer=4, n_head=2, n_embd=16, attn_bias="output", scale_attention=False, window=8,
    window_layers=(1, 3),
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_types": [[["global", "local"], 3]]}, "attention_types for 6 layers but num_layers = 4"),
        (
            {"attention_types": [[["global", "sparse"], 2]]},
            r"attention_types = \[\[\['global', 'sparse'\], 2\]\]",
        ),
        ({"attention_types": [["global", "local"]]}, 'expected patterns of "global" and "local"'),
        ({"attention_types": [4]}, r"attention_types = \[4\]; expected patterns"),
        ({"attention_types": "global"}, "attention_types = 'global'; expected a list"),
        ({"window_size": 0}, "window_size = 0; expected a whole number from 1"),
        (
            {"attention_types": [[["global", "local"], 10**12]]},
            "for 2000000000000 layers but num_layers = 4",
        ),
        ({"attention_types": [[[["global"]], 4]]}, 'expected patterns of "global" and "local"'),
        ({"num_heads": 3}, "n_embd is 16; GPT-2 needs a multiple of n_head, which is 3"),
        ({"activation_function": "relu"}, "activation_function = 'relu'"),
    ],
)
def test_unsupported_values_of_gpt_neo_are_refused(changes, message):
    assert from_hf(to_hf(NEO)) == NEO
    with pytest.raises(InputError, match=message):
        from_hf(to_hf(NEO) | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'; this GPT computes only 'silu' or 'swish'"),
        ({"layer_types": ["full_attention"] * 3}, "layer_types = .*for each of 4 layers"),
        ({"layer_types": ["chunked_attention"] * 4}, r"layer_types = \['chunked_attention'"),
        ({"use_sliding_window": "yes"}, "use_sliding_window = 'yes'; expected true or false"),
        ({"sliding_window": 0.5}, "sliding_window = 0.5; expected a whole number"),
    ],
)
def test_unsupported_values_of_qwen3_are_refused(changes, message):
    qwen3 = GPTConfig(n_layer=4, window=16, window_layers=(2, 3))
    assert from_hf(to_hf(qwen3)) == qwen3
    assert from_hf(to_hf(qwen3) | {"use_sliding_window": False}) == GPTConfig(n_layer=4)
    with pytest.raises(InputError, match=message):
        from_hf(to_hf(qwen3) | changes)


def test_damaged_and_missing_files_are_refused(folder):
    data = (folder / "model.safetensors").read_bytes()
    for content in (data[: len(data) // 2], b"version https://git-lfs.github.com/spec/v1\n", b""):
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(InputError, match="is damaged"):
            GPT.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no model\.safetensors and no pytorch_model\.bin"):
        GPT.from_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json is not valid JSON"):
        GPT.from_pretrained(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(InputError, match=r"config\.json holds a list; expected an object"):
        GPT.from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match="is not a model folder"):
        GPT.from_pretrained(folder)
    with pytest.raises(InputError, match="no folder or cached model"):
        GPT.from_pretrained("no-such-model")


@pytest.mark.parametrize("shape", [(), (4,), (2,), (16, 47), (3, 16, 16), (16, 48, 1)])
@pytest.mark.parametrize("part", ["attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight"])
def test_matrices_of_gpt2_in_other_shapes_are_refused(folder, part, shape):
    state = load_file(folder / "model.safetensors")
    save_file(state | {f"transformer.h.1.{part}": torch.zeros(shape)}, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"blocks\.1\.attn\.[qvo]\.\w+ has shape .*, its config requires"):
        GPT.from_pretrained(folder)


def test_integer_weights_are_refused(folder):
    state = load_file(folder / "model.safetensors")
    save_file({name: w.to(torch.int8) for name, w in state.items()}, folder / "model.safetensors")
    with pytest.raises(
        InputError, match=r"wte\.weight has dtype int8; expected numbers of 16 or 32 bits, not quan"
    ):
        GPT.from_pretrained(folder)
