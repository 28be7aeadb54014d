"""RoPE scaling in GGUF files: a kind and its parameters as metadata, or a tensor with one factor per rotary pair."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import torch
from torch import Tensor

from gpt_core.common.errors import InputError
from gpt_core.model.config import GPTConfig
from gpt_core.model.rope_scaling import RopeScaling, frequencies

# Further metadata keys of the scaling with llama.cpp's default values; this GPT supports only these values
DEFAULTS = {
    "attn_factor": 1.0, "yarn_ext_factor": 1.0, "yarn_attn_factor": 1.0, "yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0,
    "yarn_log_multiplier": 0.0,
}  # fmt: skip


def read_scaling(
    arch: str, metadata: dict[str, Any], factors: Tensor | None, path: Path
) -> RopeScaling | None:
    """The RoPE scaling of a GGUF file; None: no scaling.

    Args:
        arch: llama or qwen3.
        metadata: values of the file by key.
        factors: (head_dim / 2,) the tensor rope_freqs.weight, by which each pair's frequency is divided; None: the
            file has none.
        path: the file, for messages.

    Raises:
        InputError: for a kind that llama.cpp does not compute for these architectures, two kinds at once, or a
            parameter that this GPT does not support.
    """
    for name, default in DEFAULTS.items():
        value = metadata.get(f"{arch}.rope.scaling.{name}", default)
        if value != default:
            raise InputError(
                f"{path} has {arch}.rope.scaling.{name} = {value!r}; this GPT computes only {default!r}."
            )
    kind = metadata.get(f"{arch}.rope.scaling.type", "none")
    key = f"{arch}.rope.scaling.factor"
    factor = metadata.get(key, 1.0)
    if type(factor) not in (int, float) or (kind != "none" and factor <= 0):
        raise InputError(f"{path} has {key} = {factor!r}; expected a number above 0.")
    if factors is not None and kind == "none":
        return RopeScaling("longrope", factors=tuple(factors.tolist()))
    if factors is not None or kind not in ("none", "linear", "yarn"):
        also = "" if factors is None else " and by rope_freqs"
        raise InputError(
            f"{path} scales its rotary positions by {kind!r}{also}; expected none, linear, yarn or the tensor "
            "rope_freqs alone."
        )
    if kind == "yarn":
        key = f"{arch}.rope.scaling.original_context_length"
        length = metadata.get(key, metadata.get(f"{arch}.context_length"))
        if type(length) is not int or length < 1:
            raise InputError(f"{path} has {key} = {length!r}; expected a whole number of at least 1.")
        return _yarn(factor, length)
    return RopeScaling("linear", factor) if kind == "linear" else None


def unsupported_scaling(config: GPTConfig) -> str:
    """Describe what llama.cpp does not compute of a model's RoPE scaling; "" if it computes all."""
    scaling = config.rope_scaling
    if scaling is None or scaling.kind in ("linear", "dynamic"):  # dynamic scales nothing within the context
        return ""
    if scaling.kind == "yarn":
        default = _yarn(scaling.factor, scaling.original_length)
        same = math.isclose(scaling.attention_factor, default.attention_factor, rel_tol=1e-6)
        if replace(scaling, attention_factor=1.0) == replace(default, attention_factor=1.0) and same:
            return ""
        return "YaRN with other parameters than its paper's"
    if config.model_type != "llama" or scaling.attention_factor != 1.0:
        extra = (
            f" with attention_factor {scaling.attention_factor:g}" if scaling.attention_factor != 1.0 else ""
        )
        return f"RoPE scaling of kind {scaling.kind}{extra} in {config.model_type}"
    return ""


def add_scaling(writer: gguf.GGUFWriter, config: GPTConfig) -> Tensor | None:
    """Add a model's RoPE scaling to the metadata. Expects a scaling for which `unsupported_scaling` returns "".

    Returns:
        (head_dim / 2,) float32 for the tensor rope_freqs.weight, or None if the metadata suffices.
    """
    scaling = config.rope_scaling
    if scaling is None or scaling.kind == "dynamic":
        return None
    if scaling.kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling.kind))
        writer.add_rope_scaling_factor(scaling.factor)
        if scaling.original_length is not None:
            writer.add_rope_scaling_orig_ctx_len(scaling.original_length)
        return None
    plain, _ = frequencies(config.head_dim, config.rope_theta, None)
    scaled, _ = frequencies(config.head_dim, config.rope_theta, scaling)
    return torch.div(plain, scaled)


def _yarn(factor: float, original_length: int | None) -> RopeScaling:
    """YaRN with the parameters of its paper, which llama.cpp uses."""
    return RopeScaling(
        "yarn", factor, original_length=original_length, attention_factor=0.1 * math.log(factor) + 1.0
    )
