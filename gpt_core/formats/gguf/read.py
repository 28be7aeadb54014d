"""Read the shape and the weights, dequantised to float32, of a GGUF file (llama.cpp's format).

Tensor layouts: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and llama.cpp's conversion scripts.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt_core.common.errors import InputError
from gpt_core.formats.gguf.container import GGUF
from gpt_core.formats.gguf.rope import read_scaling
from gpt_core.formats.gguf.tokenizer import read_special_ids
from gpt_core.model.config import GPTConfig

# Parts of a block, and parts outside the blocks: GGUF's names → ours
BLOCK_TO_OURS = {
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
ROPE_FREQS = "rope_freqs.weight"  # the divisor of each rotary pair's frequency
TOP_TO_OURS = {"token_embd": "wte", "position_embd": "wpe", "output_norm": "norm", "output": "head"}


def read_gguf(path: Path, dtype: torch.dtype = torch.float32) -> tuple[GPTConfig, dict[str, Tensor]]:
    """Read a GGUF file of architecture gpt2, llama or qwen3.

    Args:
        path: the file.
        dtype: of the weights; each tensor is converted as it is read.

    Returns:
        The shape, and weights under our names.

    Raises:
        InputError: for a damaged file, another architecture, or a RoPE scaling that this GPT does not compute.
    """
    file = GGUF(path)
    config = read_gguf_config(file)
    arch = file.require("general.architecture")
    state: dict[str, Tensor] = {}
    for name in file.tensor_infos:
        if name == ROPE_FREQS:
            continue
        value = file.tensor(name).to(dtype)
        stem, _, kind = name.rpartition(".")
        in_block = re.fullmatch(r"blk\.(\d+)\.(.+)", stem)
        if in_block is None:
            state[f"{TOP_TO_OURS.get(stem, stem)}.{kind}"] = value
            continue
        prefix, part = f"blocks.{in_block[1]}", in_block[2]
        if part == "attn_qkv":  # GPT-2
            for third, ours in zip(value.tensor_split(3), ("q", "k", "v"), strict=True):
                state[f"{prefix}.attn.{ours}.{kind}"] = third.contiguous()
            continue
        if arch == "llama" and part in ("attn_q", "attn_k"):
            value = _unpermute(value, config.n_head if part == "attn_q" else config.n_kv_head)
        state[f"{prefix}.{BLOCK_TO_OURS.get(part, part)}.{kind}"] = value
    return config, state


def read_gguf_config(file: GGUF) -> GPTConfig:
    """The shape of the model in a GGUF file; InputError as `read_gguf`."""
    arch = file.require("general.architecture")
    if arch not in ("gpt2", "llama", "qwen3"):
        raise InputError(f"{file.path} has architecture {arch!r}; expected gpt2, llama or qwen3.")

    def number(key: str, default: float | None, whole: bool = False) -> Any:
        value = file.require(f"{arch}.{key}") if default is None else file.get(f"{arch}.{key}", default)
        if type(value) not in ((int,) if whole else (int, float)) or value <= 0:
            expected = "a whole number of at least 1" if whole else "a number above 0"
            raise InputError(f"{file.path} has {arch}.{key} = {value!r}; expected {expected}.")
        return value

    def size(key: str, default: int | None = None) -> int:
        return number(key, default, whole=True)

    n_embd, n_head = size("embedding_length"), size("attention.head_count")
    ids, ends = read_special_ids(file)
    common: dict[str, Any] = {
        "bos_id": ids["bos"], "eos_id": ends if len(ends) > 1 else ids["eos"], "pad_id": ids["pad"],
        "vocab_size": len(file.texts("tokenizer.ggml.tokens")), "block_size": size("context_length"),
        "n_layer": size("block_count"), "n_head": n_head, "n_embd": n_embd, "n_inner": size("feed_forward_length"),
        "tie_embeddings": "output.weight" not in file.tensor_infos,
    }  # fmt: skip
    if arch == "gpt2":
        return GPTConfig.gpt2(**common, norm_eps=number("attention.layer_norm_epsilon", None))
    head_dim = size("attention.key_length", n_embd // n_head)
    if (rotated := size("rope.dimension_count", head_dim)) != head_dim:
        raise InputError(
            f"{file.path} has {arch}.rope.dimension_count = {rotated}; this GPT rotates whole heads, {head_dim} wide."
        )
    factors = file.tensor(ROPE_FREQS) if ROPE_FREQS in file.tensor_infos else None
    return GPTConfig(
        **common,
        n_kv_head=size("attention.head_count_kv", n_head),
        head_dim=head_dim,
        attn_bias="blk.0.attn_q.bias" in file.tensor_infos,
        mlp_bias="blk.0.ffn_up.bias" in file.tensor_infos,
        qk_norm=arch == "qwen3",
        rope_theta=number("rope.freq_base", 10000.0),
        rope_scaling=read_scaling(arch, file.metadata, factors, file.path),
        norm_eps=number("attention.layer_norm_rms_epsilon", None),
    )


def _unpermute(weight: Tensor, n_head: int) -> Tensor:
    """Reorder rows: llama.cpp rotates neighbouring pairs (x_2i, x_2i+1), we rotate pairs (x_i, x_i+half)."""
    out, *rest = weight.shape
    if out % (2 * n_head):  # a wrong shape; the caller compares it with the model's and raises
        return weight
    return (
        weight.view(n_head, out // n_head // 2, 2, *rest).transpose(1, 2).reshape(weight.shape).contiguous()
    )
