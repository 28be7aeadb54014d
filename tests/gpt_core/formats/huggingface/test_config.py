"""Null in config.json means what it means to transformers, for every key that is read: the same logits, or an error of
both."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from gpt_core import GPT, InputError

IDS = torch.randint(0, 70, (1, 24), generator=torch.Generator().manual_seed(0))
SHAPE = {
    "vocab_size": 70, "max_position_embeddings": 32, "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 24,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 8, "beta_fast": 32.0,
    "beta_slow": 1.0, "truncate": True, "attention_factor": 1.1, "mscale": 1.0, "mscale_all_dim": 0.5,
}  # fmt: skip
SLIDING = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1, "layer_types": None}
CONFIGS = {
    "llama": transformers.LlamaConfig(**SHAPE, num_key_value_heads=1, head_dim=8, rope_parameters=dict(YARN)),
    "qwen3": transformers.Qwen3Config(**SHAPE, num_key_value_heads=1, head_dim=8, **SLIDING),
    "gpt2": transformers.GPT2Config(vocab_size=70, n_positions=32, n_embd=16, n_layer=2, n_head=2),
    "gpt_neo": transformers.GPTNeoConfig(
        vocab_size=70, max_position_embeddings=32, hidden_size=16, num_layers=2, num_heads=2, window_size=4,
        attention_types=[[["global", "local"], 1]],
    ),
}  # fmt: skip
COMMON = {
    "vocab_size",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "quantization_config",
}
ROTARY = {
    *SHAPE,
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "attention_bias",
    "attention_dropout",
}
KEYS = {
    "llama": ROTARY | {"mlp_bias", "rope_theta", "rope_parameters", "rope_scaling", "partial_rotary_factor"},
    "qwen3": ROTARY | set(SLIDING),
    "gpt2": {
        *(
            "n_positions",
            "n_embd",
            "n_layer",
            "n_head",
            "n_inner",
            "activation_function",
            "layer_norm_epsilon",
        ),
        *("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "resid_pdrop"),
    },
    "gpt_neo": {
        *(
            "max_position_embeddings",
            "hidden_size",
            "num_layers",
            "num_heads",
            "intermediate_size",
            "resid_dropout",
        ),
        *("activation_function", "layer_norm_epsilon", "window_size"),
    },
}
CASES = [(family, key) for family, keys in KEYS.items() for key in sorted(keys | COMMON)]
CASES += [("llama", f"rope_parameters.{key}") for key in YARN]


@pytest.fixture(scope="module", params=CONFIGS)
def model(request, tmp_path_factory) -> tuple[str, Path, dict[str, Any]]:
    """The family, folder and content of config.json of a random model."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(CONFIGS[request.param])
    for weight in theirs.parameters():
        weight.data.add_(torch.randn_like(weight) * 0.3)
    theirs.save_pretrained(folder)
    return request.param, folder, json.loads((folder / "config.json").read_text())


@torch.no_grad()
def test_null_means_what_it_means_to_transformers(model):
    family, folder, raw = model
    for key in [key for its_family, key in CASES if its_family == family]:
        changed = copy.deepcopy(raw)
        outer, _, inner = key.rpartition(".")
        (changed[outer] if outer else changed)[inner] = None
        if key in ("sliding_window", "max_window_layers"):
            del changed["layer_types"]  # which follow from them
        (folder / "config.json").write_text(json.dumps(changed))
        try:
            theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
        except Exception:  # of many kinds
            with pytest.raises(InputError, match=r"\A.*\Z"):  # one line
                GPT.from_pretrained(folder)
        else:
            difference = (GPT.from_pretrained(folder)(IDS).logits - theirs.eval()(IDS).logits).abs().max()
            assert difference < 1e-4, key
