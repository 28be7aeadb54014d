"""GGUF, llama.cpp's file format: weights dequantised to float32, the tokenizer, the chat template.

Tensor layouts: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and llama.cpp's conversion scripts.
"""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from gpt_core.common.errors import InputError
from gpt_core.formats.gguf.container import GGUF
from gpt_core.formats.gguf.rope import read_scaling
from gpt_core.formats.gguf.tokenizer import read_special_ids
from gpt_core.model.config import GPTConfig

BLOCK = {
    "attn_norm": "norm1",
    "attn_q": "attn.q",
    "attn_k": "attn.k",
    "attn_v": "attn.v",
    "attn_output": "attn.o",
    "attn_q_norm": "attn.q_norm",
    "attn_k_norm": "attn.k_norm",
    "ffn_norm": "norm2",
    "ffn_gate": "mlp.gate",
    "ffn_up": "mlp.up",
    "ffn_down": "mlp.down",
}
ROPE_FREQS = "rope_freqs.weight"  # how many times as slow each rotary pair is
TOP = {"token_embd": "wte", "position_embd": "wpe", "output_norm": "norm", "output": "head"}


def read_gguf(path: Path) -> tuple[GPTConfig, dict[str, Tensor]]:
    """Read a GGUF file of architecture gpt2, llama or qwen3.

    Returns:
        The shape, and float32 weights under our names.

    Raises:
        InputError: for a torn file, another architecture, or a RoPE scaling that this GPT does not compute.
    """
    file = GGUF(path)
    arch = file.need("general.architecture")
    if arch not in ("gpt2", "llama", "qwen3"):
        raise InputError(f"{path} has architecture {arch!r}; expected gpt2, llama or qwen3.")
    config = _config(arch, file)
    state: dict[str, Tensor] = {}
    for name in file.places:
        if name == ROPE_FREQS:
            continue
        value = file.tensor(name)
        stem, _, kind = name.rpartition(".")
        in_block = re.fullmatch(r"blk\.(\d+)\.(.+)", stem)
        if in_block is None:
            state[f"{TOP.get(stem, stem)}.{kind}"] = value
            continue
        prefix, part = f"blocks.{in_block[1]}", in_block[2]
        if part == "attn_qkv":  # GPT-2
            for third, ours in zip(value.tensor_split(3), ("q", "k", "v"), strict=True):
                state[f"{prefix}.attn.{ours}.{kind}"] = third.contiguous()
            continue
        if arch == "llama" and part in ("attn_q", "attn_k"):
            value = _unpermute(value, config.n_head if part == "attn_q" else config.n_kv_head)
        state[f"{prefix}.{BLOCK.get(part, part)}.{kind}"] = value
    return config, state


def _config(arch: str, file: GGUF) -> GPTConfig:
    def number(key: str, default: float | None, whole: bool = False) -> Any:
        value = file.need(f"{arch}.{key}") if default is None else file.get(f"{arch}.{key}", default)
        if type(value) not in ((int,) if whole else (int, float)) or value <= 0:
            wanted = "a whole number of at least 1" if whole else "a number above 0"
            raise InputError(f"{file.path} has {arch}.{key} = {value!r}; expected {wanted}.")
        return value

    def size(key: str, default: int | None = None) -> int:
        return number(key, default, whole=True)

    n_embd, n_head = size("embedding_length"), size("attention.head_count")
    ids: dict[str, Any] = read_special_ids(file)
    turn = ids.pop("eot")
    if turn is not None and turn != ids["eos"]:
        ids["eos"] = (ids["eos"], turn)
    common = {f"{name}_id": i for name, i in ids.items()} | {
        "vocab_size": len(file.texts("tokenizer.ggml.tokens")), "block_size": size("context_length"),
        "n_layer": size("block_count"), "n_head": n_head, "n_embd": n_embd, "n_inner": size("feed_forward_length"),
        "tie_embeddings": "output.weight" not in file.places,
    }  # fmt: skip
    if arch == "gpt2":
        return GPTConfig.gpt2(**common, norm_eps=number("attention.layer_norm_epsilon", None))
    head_dim = size("attention.key_length", n_embd // n_head)
    if (turned := size("rope.dimension_count", head_dim)) != head_dim:
        raise InputError(
            f"{file.path} has {arch}.rope.dimension_count = {turned}; this GPT turns whole heads, {head_dim} wide."
        )
    factors = file.tensor(ROPE_FREQS) if ROPE_FREQS in file.places else None
    return GPTConfig(
        **common,
        n_kv_head=size("attention.head_count_kv", n_head),
        head_dim=head_dim,
        attn_bias="blk.0.attn_q.bias" in file.places,
        mlp_bias="blk.0.ffn_up.bias" in file.places,
        qk_norm=arch == "qwen3",
        rope_theta=number("rope.freq_base", 10000.0),
        rope_scaling=read_scaling(arch, file.metadata, factors, file.path),
        norm_eps=number("attention.layer_norm_rms_epsilon", None),
    )


def _unpermute(weight: Tensor, n_head: int) -> Tensor:
    """llama.cpp turns neighbouring pairs (x_2i, x_2i+1) where we turn (x_i, x_i+half): reorder the rows back."""
    out, *rest = weight.shape
    if out % (2 * n_head):  # of no such heads: whoever compares it with the shape refuses it as it is
        return weight
    return (
        weight.view(n_head, out // n_head // 2, 2, *rest).transpose(1, 2).reshape(weight.shape).contiguous()
    )
