"""The keys of Hugging Face's `config.json` that are read, and the values that they may have."""

import math
from typing import Any

from gpt_core.common.errors import InputError
from gpt_core.model.config import MAX_DIMENSION, MAX_LAYERS

# Keys by the type of their value, those of model_type "zhizhi" included
SIZES = {
    *("vocab_size", "n_positions", "n_head", "n_embd", "n_inner", "max_position_embeddings"),
    *("num_attention_heads", "num_key_value_heads", "hidden_size", "head_dim", "intermediate_size"),
    *("num_heads", "window_size", "sliding_window", "block_size", "n_kv_head", "window"),
}
LAYERS = {"n_layer", "num_hidden_layers", "num_layers"}
NUMBERS = {
    *("layer_norm_epsilon", "rms_norm_eps", "rope_theta", "resid_pdrop", "attention_dropout"),
    *("resid_dropout", "norm_eps", "dropout"),
}
SWITCHES = {
    *("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window", "scale_attn_weights"),
    *("scale_attn_by_inverse_layer_idx", "qk_norm", "scale_attention", "tie_embeddings"),
}
IDS = {"bos_token_id", "eos_token_id", "pad_token_id", "bos_id", "eos_id", "pad_id"}
LISTS = {"attention_types", "layer_types", "window_layers"}
OBJECTS = {"rope_parameters", "rope_scaling"}
OTHERS = {"activation_function", "hidden_act", "max_window_layers", "position", "norm", "mlp", "attn_bias"}
# Keys whose null has a meaning: no such id or setting, or the size that follows from the others. transformers refuses
# null for all other keys that are read here.
NULLABLE = IDS | OBJECTS
NULLABLE |= {
    "num_key_value_heads",
    "n_inner",
    "intermediate_size",
    "head_dim",
    "rope_theta",
    "attention_dropout",
}
NULLABLE |= {"attention_types", "layer_types", "sliding_window", "window"}
# Exceptions: keys that are not optional in one family
NOT_NULLABLE = {
    "qwen3": {"head_dim", "attention_dropout", "intermediate_size"},
    "llama": {"intermediate_size"},
    "zhizhi": {"head_dim", "n_inner", "rope_theta"},
}


def check_values(raw: dict[str, Any], family: str) -> None:
    """Check the types of the values, and that only keys are null whose null has a meaning.

    Args:
        raw: the content of a `config.json`.
        family: its model_type.

    Raises:
        InputError: naming the key, its value and what was expected.
    """
    nullable = NULLABLE - NOT_NULLABLE.get(family, set())
    if not raw.get("rope_parameters"):
        nullable -= {"rope_theta"}
    read = SIZES | LAYERS | NUMBERS | SWITCHES | IDS | LISTS | OBJECTS | OTHERS
    for key, value in raw.items():
        if value is None and key in nullable:
            continue
        if value is None and key in read:
            raise InputError(
                f"config.json has {key} = null, which means nothing there; give a value or remove the key."
            )
        most = MAX_DIMENSION if key in SIZES else MAX_LAYERS if key in LAYERS else 0
        if most and (type(value) is not int or not 1 <= value <= most):
            raise InputError(f"config.json has {key} = {value!r}; expected a whole number from 1 to {most}.")
        several = key in ("eos_token_id", "eos_id") and isinstance(value, (list, tuple))
        if key in IDS and not all(type(i) is int for i in (value if several else [value])):
            raise InputError(f"config.json has {key} = {value!r}; expected a token's id.")
        for keys, kinds, words in (
            (NUMBERS, (int, float), "a number"),
            (SWITCHES, (bool,), "true or false"),
            (LISTS, (list, tuple), "a list"),
            (OBJECTS, (dict,), "an object"),
        ):
            if key in keys and type(value) not in kinds:
                raise InputError(f"config.json has {key} = {value!r}; expected {words}.")
        if key in NUMBERS and not math.isfinite(value):
            raise InputError(f"config.json has {key} = {value}; expected a finite number.")
