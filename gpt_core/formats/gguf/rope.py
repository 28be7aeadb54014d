"""RoPE scaling as GGUF files have it: a kind and its numbers as metadata, or a tensor with a number for each pair."""

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

# What else a file can say of its scaling, with the values that llama.cpp takes where it says nothing
USUAL = {
    "attn_factor": 1.0, "yarn_ext_factor": 1.0, "yarn_attn_factor": 1.0, "yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0,
    "yarn_log_multiplier": 0.0,
}  # fmt: skip


def read_scaling(
    arch: str, metadata: dict[str, Any], factors: Tensor | None, path: Path
) -> RopeScaling | None:
    """The scaling that a GGUF file asks for.

    Args:
        arch: llama or qwen3.
        metadata: values of the file by key.
        factors: (head_dim / 2,) its tensor rope_freqs.weight: how many times as slow each pair is. None: it has none.
        path: the file, for messages.

    Raises:
        InputError: for a kind that llama.cpp does not compute for these architectures, or two at once, or a number that
            this GPT does not compute.
    """
    for name, usual in USUAL.items():
        value = metadata.get(f"{arch}.rope.scaling.{name}", usual)
        if value != usual:
            raise InputError(
                f"{path} has {arch}.rope.scaling.{name} = {value!r}; this GPT computes only {usual!r}."
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


def scaling_refusal(config: GPTConfig) -> str:
    """What of a model's RoPE scaling llama.cpp does not compute, in words; "" if nothing."""
    scaling = config.rope_scaling
    if scaling is None or scaling.kind in ("linear", "dynamic"):  # dynamic: none within the model's context
        return ""
    if scaling.kind == "yarn":
        usual = _yarn(scaling.factor, scaling.original_length)
        same = math.isclose(scaling.attention_factor, usual.attention_factor, rel_tol=1e-6)
        if replace(scaling, attention_factor=1.0) == replace(usual, attention_factor=1.0) and same:
            return ""
        return "YaRN with other numbers than its paper's"
    if config.model_type != "llama" or scaling.attention_factor != 1.0:
        loud = (
            f" with attention_factor {scaling.attention_factor:g}" if scaling.attention_factor != 1.0 else ""
        )
        return f"RoPE scaling of kind {scaling.kind}{loud} in {config.model_type}"
    return ""


def add_scaling(writer: gguf.GGUFWriter, config: GPTConfig) -> Tensor | None:
    """Add a model's RoPE scaling to the metadata; what `scaling_refusal` names is not for here.

    Returns:
        (head_dim / 2,) float32 for the tensor rope_freqs.weight, or None where the metadata says it all.
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
    """YaRN with the numbers of its paper, which llama.cpp takes."""
    return RopeScaling(
        "yarn", factor, original_length=original_length, attention_factor=0.1 * math.log(factor) + 1.0
    )
