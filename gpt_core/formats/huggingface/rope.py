"""Read and write the rotary settings of Hugging Face's `config.json`.

transformers 5 has them in `rope_parameters`, earlier versions in `rope_theta` and `rope_scaling`.
"""

import math
from typing import Any, get_args

from gpt_core.common.errors import InputError
from gpt_core.model.config import MAX_DIMENSION
from gpt_core.model.rope_scaling import RopeKind, RopeScaling

KNOWN_KEYS = {
    *(
        "type",
        "rope_type",
        "rope_theta",
        "partial_rotary_factor",
        "factor",
        "original_max_position_embeddings",
    ),
    *("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "attention_factor", "mscale"),
    *("mscale_all_dim", "truncate", "short_factor", "long_factor"),
}
# Settings whose null means that they are not set; transformers refuses null for the others, and takes it for false as
# `truncate`.
NULLABLE = ("factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")


def rope_from_hf(raw: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    """The base theta and the scaling of a `config.json` without null values.

    Raises:
        InputError: naming a setting that this GPT does not compute and its value.
    """
    key = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
    rope = {
        name: value for name, value in raw.get(key, {}).items() if value is not None or name not in NULLABLE
    }
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", *get_args(RopeKind)):
        raise InputError(
            f"config.json has {key} of type {kind!r}; this GPT computes default, {', '.join(get_args(RopeKind))}."
        )
    for name, value in rope.items():
        if name not in KNOWN_KEYS:
            raise InputError(f"config.json has {name} = {value!r} in {key}; this GPT does not compute that.")
    part = rope.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0))
    if part != 1:
        raise InputError(
            f"config.json has partial_rotary_factor = {part!r}; this GPT rotates whole heads and computes only 1.0."
        )
    theta = _number(rope, "rope_theta", raw.get("rope_theta", 10000.0), key)
    return theta, None if kind == "default" else _scaling(kind, rope, raw, key)


def _scaling(kind: RopeKind, rope: dict[str, Any], raw: dict[str, Any], key: str) -> RopeScaling:
    context = raw["max_position_embeddings"]
    original = raw.get(
        "original_max_position_embeddings", rope.get("original_max_position_embeddings", context)
    )
    if type(original) is not int or not 2 <= original <= MAX_DIMENSION:
        raise InputError(
            f"config.json has original_max_position_embeddings = {original!r}; expected a whole number from 2 to "
            f"{MAX_DIMENSION}."
        )
    if kind in ("linear", "dynamic"):
        return RopeScaling(kind, _number(rope, "factor", None, key))
    if kind == "llama3":
        names = ("factor", "low_freq_factor", "high_freq_factor")
        factor, low, high = (_number(rope, name, None, key) for name in names)
        return RopeScaling(kind, factor, original, low_freq_factor=low, high_freq_factor=high)
    factor = _number(rope, "factor", context / original, key)
    if kind == "longrope":
        attention_factor = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        factors, beyond = rope.get("short_factor"), rope.get("long_factor")
        if factors != beyond and context > original:
            raise InputError(
                f"config.json has {key} whose long_factor differs from short_factor; this GPT computes only "
                "one list of factors for all lengths."
            )
        if not isinstance(factors, list) or not all(type(f) in (int, float) for f in factors):
            raise InputError(
                f"config.json has short_factor = {factors!r} in {key}; expected a list of numbers."
            )
        attention_factor = _number(rope, "attention_factor", attention_factor, key)
        return RopeScaling(kind, attention_factor=attention_factor, factors=tuple(factors))
    scale, whole_scale = (_number(rope, name, 0.0, key) for name in ("mscale", "mscale_all_dim"))
    attention_factor = _attention_factor(factor, 1.0)
    if scale and whole_scale:
        attention_factor = _attention_factor(factor, scale) / _attention_factor(factor, whole_scale)
    truncate = False if rope.get("truncate", True) is None else rope.get("truncate", True)
    if type(truncate) is not bool:
        raise InputError(f"config.json has truncate = {truncate!r} in {key}; expected true or false.")
    return RopeScaling(
        kind,
        factor,
        original,
        beta_fast=_number(rope, "beta_fast", 0.0, key) or 32.0,
        beta_slow=_number(rope, "beta_slow", 0.0, key) or 1.0,
        truncate=truncate,
        attention_factor=_number(rope, "attention_factor", attention_factor, key),
    )


def _attention_factor(factor: float, scale: float) -> float:
    """YaRN's attention factor, by which its paper scales queries and keys."""
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def rope_to_hf(theta: float, scaling: RopeScaling | None, context: int) -> dict[str, Any]:
    """The rotary keys of a `config.json`, old and new; the inverse of `rope_from_hf`.

    Args:
        theta: base of the rotary frequencies.
        scaling: as in `GPTConfig`.
        context: maximum context length in tokens.
    """
    if scaling is None:
        return {"rope_theta": theta, "rope_parameters": {"rope_type": "default", "rope_theta": theta}}
    values: dict[str, Any] = {"rope_type": scaling.kind}
    if scaling.kind == "longrope":
        factors = list(scaling.factors)
        values |= {
            "short_factor": factors,
            "long_factor": factors,
            "original_max_position_embeddings": context,
        }
    else:
        values["factor"] = scaling.factor
    if scaling.original_length is not None:
        values["original_max_position_embeddings"] = scaling.original_length
    if scaling.kind == "llama3":
        values |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    if scaling.kind == "yarn":
        values |= {
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "truncate": scaling.truncate,
        }
    if scaling.kind in ("yarn", "longrope"):
        values["attention_factor"] = scaling.attention_factor
    return {"rope_theta": theta, "rope_scaling": values, "rope_parameters": values | {"rope_theta": theta}}


def _number(rope: dict[str, Any], name: str, default: float | None, key: str) -> Any:
    """The number under `name`, else `default`; InputError if that is not a finite number."""
    value: Any = rope.get(name, default)
    if type(value) not in (int, float) or not math.isfinite(value):
        raise InputError(f"config.json has {name} = {value!r} in {key}; expected a number.")
    return value
