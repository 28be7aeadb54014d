"""Read and write Hugging Face's `config.json` for GPT-2, GPT-Neo, Llama and Qwen3.

Models with ALiBi, which none of these families has, are written with model_type "zhizhi" and our own key names. Only
this package reads them.
"""

from dataclasses import asdict, fields
from typing import Any

from gpt_core.common.errors import InputError
from gpt_core.formats.huggingface.keys import check_values
from gpt_core.formats.huggingface.rope import rope_from_hf, rope_to_hf
from gpt_core.model.config import COUNTS, GPTConfig

FAMILIES = ("gpt2", "gpt_neo", "llama", "qwen3", "zhizhi")  # supported values of model_type

# Hugging Face's activation_function → ours
GELU = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "gelu_erf"}


def from_hf(raw: dict[str, Any]) -> GPTConfig:
    """Read the content of a Hugging Face `config.json`.

    Raises:
        InputError: for a family, or a value of a key, that this GPT does not compute.
        KeyError: for a missing key.
    """
    if not isinstance(raw, dict):
        raise InputError(f"config.json holds a {type(raw).__name__}; expected an object.")
    family = raw.get("model_type")
    if family not in FAMILIES:
        raise InputError(f"config.json has model_type {family!r}; expected {_either(FAMILIES)}.")
    check_values(raw, family)
    if raw.get("sliding_window", 4096) is None:  # full attention, whatever the layers' own kinds are
        raw = raw | {"use_sliding_window": False}
    raw = {key: value for key, value in raw.items() if value is not None}
    if quantised := raw.get("quantization_config"):
        method = quantised.get("quant_method", "") if isinstance(quantised, dict) else quantised
        raise InputError(
            f"config.json has quantization_config of {method!r}; this GPT reads weights of 16 and 32 bits, and GGUF."
        )
    if family == "zhizhi":
        return _from_zhizhi(raw)
    eos = raw.get("eos_token_id")
    common: dict[str, Any] = {
        "vocab_size": raw["vocab_size"],
        "bos_id": raw.get("bos_token_id"),
        "eos_id": tuple(eos) if isinstance(eos, list) else eos,
        "pad_id": raw.get("pad_token_id"),
    }
    if family in ("llama", "qwen3"):
        return _from_rotary(raw, common)
    common["mlp"] = GELU[_expect(raw, "activation_function", tuple(GELU), default="gelu_new")]
    return _from_gpt2(raw, common) if family == "gpt2" else _from_gpt_neo(raw, common)


def generation_eos_ids(raw: dict[str, Any]) -> tuple[int, ...]:
    """The end-of-text ids in the content of a `generation_config.json`, which may differ from those of `config.json`.

    Raises:
        InputError: if they are not token ids.
    """
    eos = raw.get("eos_token_id")
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    if not all(type(i) is int for i in ids):
        raise InputError(f"eos_token_id is {eos!r}; expected a token's id or a list of them.")
    return tuple(ids)


def generation_settings(config: GPTConfig) -> dict[str, Any]:
    """The content of `generation_config.json` for other tools: the ids that begin, end and pad a text."""
    eos = list(config.eos_ids) if len(config.eos_ids) > 1 else next(iter(config.eos_ids), None)
    ids = {"bos_token_id": config.bos_id, "eos_token_id": eos, "pad_token_id": config.pad_id}
    return {name: i for name, i in ids.items() if i is not None}


def _from_gpt2(raw: dict[str, Any], common: dict[str, Any]) -> GPTConfig:
    _expect(raw, "scale_attn_by_inverse_layer_idx", (False,), default=False)
    return GPTConfig.gpt2(
        block_size=raw["n_positions"],
        n_layer=raw["n_layer"],
        n_head=raw["n_head"],
        n_embd=raw["n_embd"],
        n_inner=raw.get("n_inner") or 4 * raw["n_embd"],
        norm_eps=raw.get("layer_norm_epsilon", 1e-5),
        scale_attention=raw.get("scale_attn_weights", True),
        tie_embeddings=raw.get("tie_word_embeddings", True),
        dropout=raw.get("resid_pdrop", 0.0),
        **common,
    )


def _from_gpt_neo(raw: dict[str, Any], common: dict[str, Any]) -> GPTConfig:
    n_layer = raw["num_layers"]
    kinds = _attention_kinds(raw.get("attention_types", [[["global", "local"], 12]]), n_layer)
    local = tuple(layer for layer, kind in enumerate(kinds) if kind == "local")
    return GPTConfig.gpt2(
        block_size=raw["max_position_embeddings"],
        n_layer=n_layer,
        n_head=raw["num_heads"],
        n_embd=raw["hidden_size"],
        n_inner=raw.get("intermediate_size") or 4 * raw["hidden_size"],
        attn_bias="output",
        scale_attention=False,
        window=raw.get("window_size", 256) if local else None,
        window_layers=local,
        norm_eps=raw.get("layer_norm_epsilon", 1e-5),
        tie_embeddings=raw.get("tie_word_embeddings", True),
        dropout=raw.get("resid_dropout", 0.0),
        **common,
    )


def _attention_kinds(types: list[Any], n_layer: int) -> list[str]:
    """Expand GPT-Neo's [[["global", "local"], 12]] to one kind per layer."""
    try:
        known = {kind for pattern, _ in types for kind in pattern} <= {"global", "local"}
        n_kinds = sum(len(pattern) * times for pattern, times in types)
    except (TypeError, ValueError):
        known, n_kinds = False, 0
    if not known or not all(type(times) is int and times > 0 for _, times in types):
        raise InputError(
            f'config.json has attention_types = {types!r}; expected patterns of "global" and "local", each with its '
            'number of repeats, such as [[["global", "local"], 12]].'
        )
    if n_kinds != n_layer:
        raise InputError(
            f"config.json has attention_types for {n_kinds} layers but num_layers = {n_layer}; expected as many kinds."
        )
    return [kind for pattern, times in types for _ in range(times) for kind in pattern]


def _from_rotary(raw: dict[str, Any], common: dict[str, Any]) -> GPTConfig:
    """Read the config of Llama and Qwen3."""
    _expect(raw, "hidden_act", ("silu", "swish"), default="silu")
    n_layer, n_head = raw["num_hidden_layers"], raw["num_attention_heads"]
    rope_theta, rope_scaling = rope_from_hf(raw)
    qwen3 = raw["model_type"] == "qwen3"
    sliding = _sliding_layers(raw, n_layer) if qwen3 else ()
    return GPTConfig(
        block_size=raw["max_position_embeddings"],
        n_layer=n_layer,
        n_head=n_head,
        n_kv_head=raw.get("num_key_value_heads") or n_head,
        n_embd=raw["hidden_size"],
        head_dim=raw.get("head_dim", 128 if qwen3 else raw["hidden_size"] // n_head),
        n_inner=raw["intermediate_size"],
        attn_bias=raw.get("attention_bias", False),
        mlp_bias=not qwen3 and raw.get("mlp_bias", False),
        qk_norm=qwen3,
        window=raw.get("sliding_window", 4096) if sliding else None,
        window_layers=sliding,
        tie_embeddings=raw.get("tie_word_embeddings", False),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        norm_eps=raw.get("rms_norm_eps", 1e-6),
        dropout=raw.get("attention_dropout", 0.0),
        **common,
    )


def _sliding_layers(raw: dict[str, Any], n_layer: int) -> tuple[int, ...]:
    """Qwen3's layers with sliding-window attention: from `layer_types`, else all from `max_window_layers` on."""
    if not raw.get("use_sliding_window", False):
        return ()
    kinds = raw.get("layer_types")
    if kinds is None:
        first = raw.get("max_window_layers", 28)
        if type(first) is not int or first < 0:
            raise InputError(
                f"config.json has max_window_layers = {first!r}; expected a whole number of layers of at least 0."
            )
        return tuple(range(first, n_layer))
    if len(kinds) != n_layer or not set(map(str, kinds)) <= {"full_attention", "sliding_attention"}:
        raise InputError(
            f"config.json has layer_types = {kinds!r}; expected full_attention or sliding_attention for each of "
            f"{n_layer} layers."
        )
    return tuple(layer for layer, kind in enumerate(kinds) if kind == "sliding_attention")


def _from_zhizhi(raw: dict[str, Any]) -> GPTConfig:
    no_shape_keys = ("model_type", "architectures", "dtype")
    shape: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in raw.items()
        if key not in no_shape_keys
    }
    known = {field.name for field in fields(GPTConfig)}
    if unknown := sorted(shape.keys() - known):
        raise InputError(
            f"config.json has the key {unknown[0]}, which models of zhizhi do not have; remove it."
        )
    for key in COUNTS:
        if key not in shape:
            raise KeyError(key)
    try:
        config = GPTConfig(**shape)
    except TypeError as error:
        raise InputError(f"config.json does not describe a model of zhizhi: {error}.") from error
    if config.position != "alibi":
        raise InputError(
            f"config.json has position = {config.position!r}; models of zhizhi have only 'alibi'."
        )
    return config


def to_hf(config: GPTConfig) -> dict[str, Any]:
    """The content of a Hugging Face `config.json` for `config`; the inverse of `from_hf`.

    Raises:
        InputError: if no family of Hugging Face computes this graph.
    """
    family = config.model_type
    if family == "zhizhi":
        return {"model_type": family, "architectures": ["GPT"], "dtype": "float32"} | asdict(config)
    common: dict[str, Any] = {
        "model_type": family,
        "vocab_size": config.vocab_size,
        "bos_token_id": config.bos_id,
        "eos_token_id": list(config.eos_id) if isinstance(config.eos_id, tuple) else config.eos_id,
        "pad_token_id": config.pad_id,
        "tie_word_embeddings": config.tie_embeddings,
        "dtype": "float32",
    }
    if family == "gpt2":
        return common | {
            "architectures": ["GPT2LMHeadModel"],
            "n_positions": config.block_size,
            "n_layer": config.n_layer,
            "n_head": config.n_head,
            "n_embd": config.n_embd,
            "n_inner": config.n_inner,
            "activation_function": "gelu" if config.mlp == "gelu_erf" else "gelu_new",
            "scale_attn_weights": config.scale_attention,
            "layer_norm_epsilon": config.norm_eps,
            "resid_pdrop": config.dropout,
            "embd_pdrop": config.dropout,
            "attn_pdrop": config.dropout,
        }
    if family == "gpt_neo":
        kinds = ["local" if i in config.window_layers else "global" for i in range(config.n_layer)]
        return common | {
            "architectures": ["GPTNeoForCausalLM"],
            "max_position_embeddings": config.block_size,
            "num_layers": config.n_layer,
            "num_heads": config.n_head,
            "hidden_size": config.n_embd,
            "intermediate_size": config.n_inner,
            "attention_types": [[kinds, 1]],
            "window_size": config.window or 256,
            "activation_function": "gelu" if config.mlp == "gelu_erf" else "gelu_new",
            "layer_norm_epsilon": config.norm_eps,
            "resid_dropout": config.dropout,
            "embed_dropout": config.dropout,
            "attention_dropout": config.dropout,
        }
    raw = common | {
        "architectures": ["LlamaForCausalLM" if family == "llama" else "Qwen3ForCausalLM"],
        "max_position_embeddings": config.block_size,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "hidden_size": config.n_embd,
        "head_dim": config.head_dim,
        "intermediate_size": config.n_inner,
        "hidden_act": "silu",
        "attention_bias": config.attn_bias,
        "mlp_bias": config.mlp_bias,
        "rms_norm_eps": config.norm_eps,
        "attention_dropout": config.dropout,
    }
    raw |= rope_to_hf(config.rope_theta, config.rope_scaling, config.block_size)
    if config.window_layers:
        kinds = [
            "sliding_attention" if i in config.window_layers else "full_attention"
            for i in range(config.n_layer)
        ]
        raw |= {"use_sliding_window": True, "sliding_window": config.window, "layer_types": kinds}
        raw["max_window_layers"] = config.window_layers[0]
    return raw


def _expect(raw: dict[str, Any], key: str, allowed: tuple[Any, ...], default: Any) -> Any:
    """The value of `key`; InputError unless it is one of `allowed`."""
    value = raw.get(key, default)
    if value not in allowed:
        wanted = " or ".join(repr(a) for a in allowed)
        raise InputError(f"config.json has {key} = {value!r}; this GPT computes only {wanted}.")
    return value


def _either(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
