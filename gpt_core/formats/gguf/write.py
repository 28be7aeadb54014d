"""Write a GPT and its tokenizer as one GGUF file for llama.cpp and the tools that build on it.

Names, layouts and number formats follow llama.cpp's conversion scripts and
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; `read_gguf` reads these files.
"""

import math
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Format
from gguf import LlamaFileType
from numpy.typing import NDArray
from torch import Tensor

from gpt_core.common.errors import InputError
from gpt_core.formats.gguf.read import BLOCK_TO_OURS, TOP_TO_OURS
from gpt_core.formats.gguf.rope import add_scaling, unsupported_scaling
from gpt_core.formats.gguf.tokenizer import add_tokenizer
from gpt_core.model.config import GPTConfig
from gpt_core.model.gpt import GPT
from gpt_core.tokenizer.tokenizer import Tokenizer

GGUFDtype = Literal["float16", "q8_0"]
FAMILIES = ("gpt2", "llama", "qwen3")
BLOCK_TO_GGUF = {ours: theirs for theirs, ours in BLOCK_TO_OURS.items()}
TOP_TO_GGUF = {ours: theirs for theirs, ours in TOP_TO_OURS.items()}
Q8_0_BLOCK = 32  # values that share a scale; the row length must be a multiple


def write_gguf(
    path: Path,
    model: GPT,
    tokenizer: Tokenizer,
    dtype: GGUFDtype,
    *,
    name: str,
    licence: str | None = None,
) -> list[str]:
    """Write a GGUF file.

    Matrices are stored in `dtype`; norms, biases and position embeddings in float32, as llama.cpp requires.

    Args:
        path: the file, in a temporary folder, because a write error such as a full disk leaves an incomplete file.
        model: the GPT, in float32.
        tokenizer: its tokenizer.
        dtype: of the matrices: float16, or q8_0: 8-bit values of which 32 in a row share a float16 scale.
        name: the model's name in the metadata.
        licence: the weights' licence, as an SPDX identifier in lower case.

    Returns:
        The matrices that stayed float16 because their row length is not a multiple of 32.

    Raises:
        InputError: for a graph or a tokenizer that llama.cpp does not support, or weights beyond float16's range.
        OSError: if the file cannot be written.
    """
    config = model.config
    check_graph(config)
    writer = gguf.GGUFWriter(path, config.model_type)
    try:
        writer.add_type("model")
        writer.add_name(name)
        if licence is not None:
            writer.add_license(licence)
        factors = _add_shape(writer, config)
        add_tokenizer(writer, tokenizer, config)
        q8_0 = dtype == "q8_0"
        writer.add_file_type(LlamaFileType.MOSTLY_Q8_0 if q8_0 else LlamaFileType.MOSTLY_F16)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        values = _tensors(model) | ({} if factors is None else {"rope_freqs.weight": factors})
        tensors = {name: (value, _format(name, value, q8_0)) for name, value in values.items()}
        for tensor, (value, form) in tensors.items():
            n_bytes = math.prod(gguf.quant_shape_to_byte_shape(value.shape, form))
            writer.add_tensor_info(tensor, value.shape, np.dtype(np.float32), n_bytes, raw_dtype=form)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        # gguf's write_tensors_to_file keeps all tensors in memory and does not report a full disk.
        assert writer.fout is not None
        file = writer.fout[0]
        writer.write_padding(file, file.tell())
        for tensor, (value, form) in tensors.items():
            data = _converted(tensor, value, form).tobytes()
            file.write(data)
            writer.write_padding(file, len(data))
    finally:
        writer.close()
    return [name for name, (value, form) in tensors.items() if q8_0 and form == Format.F16]


def check_graph(config: GPTConfig) -> None:
    """Check that llama.cpp computes this graph.

    Raises:
        InputError: naming the unsupported feature.
    """
    family = config.model_type
    reason = ""
    if family not in FAMILIES:
        reason = f"the family {family}"
    elif family == "qwen3" and config.attn_bias:
        reason = "Qwen3 with biases in attention (attn_bias)"
    elif config.window_layers:
        reason = f"{family} with sliding-window attention (window_layers)"
    elif not config.scale_attention:
        reason = f"{family} without scaled attention (scale_attention)"
    else:
        reason = unsupported_scaling(config)
    if reason:
        raise InputError(f"llama.cpp does not compute {reason}; export the model with --to hf.")


def _add_shape(writer: gguf.GGUFWriter, config: GPTConfig) -> Tensor | None:
    """Add the shape; return the values for the tensor rope_freqs.weight, or None."""
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.block_size)
    writer.add_block_count(config.n_layer)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.n_inner)
    writer.add_head_count(config.n_head)
    if config.model_type == "gpt2":
        writer.add_layer_norm_eps(config.norm_eps)
        return None
    writer.add_head_count_kv(config.n_kv_head)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    return add_scaling(writer, config)


def _tensors(model: GPT) -> dict[str, Tensor]:
    """Tensors (out, in) by their names in the file, in the order of the model."""
    config = model.config
    state = model.state_dict()
    found: dict[str, Tensor] = {}
    for ours, value in state.items():
        path, _, kind = ours.rpartition(".")
        if not path.startswith("blocks."):
            found[f"{TOP_TO_GGUF[path]}.{kind}"] = value
            continue
        _, layer, part = path.split(".", 2)
        if config.model_type == "gpt2" and part in ("attn.q", "attn.k", "attn.v"):  # one matrix in GGUF
            parts = [state[f"blocks.{layer}.attn.{name}.{kind}"] for name in "qkv"]
            found[f"blk.{layer}.attn_qkv.{kind}"] = torch.cat(parts)
            continue
        if config.model_type == "llama" and part in ("attn.q", "attn.k"):
            value = _permute(value, config.n_head if part == "attn.q" else config.n_kv_head)
        found[f"blk.{layer}.{BLOCK_TO_GGUF[part]}.{kind}"] = value
    return found


def _permute(weight: Tensor, n_head: int) -> Tensor:
    """Reorder each head's rows: we rotate pairs (x_i, x_i+half), llama.cpp neighbouring pairs (x_2i, x_2i+1)."""
    out, *rest = weight.shape
    return weight.view(n_head, 2, out // n_head // 2, *rest).transpose(1, 2).reshape(weight.shape)


def _format(name: str, value: Tensor, q8_0: bool) -> Format:
    if value.dim() == 1 or name.startswith("position_embd"):
        return Format.F32
    return Format.Q8_0 if q8_0 and value.shape[-1] % Q8_0_BLOCK == 0 else Format.F16


def _converted(name: str, value: Tensor, form: Format) -> NDArray[Any]:
    values = np.ascontiguousarray(value.detach().float().cpu().numpy())
    largest = float(np.abs(values).max(initial=0.0))
    bound = 65504.0 * (
        127 if form == Format.Q8_0 else 1
    )  # the largest float16, which also bounds a Q8_0 scale
    if form != Format.F32 and not largest <= bound:
        raise InputError(
            f"{name} holds {largest:.3g}, beyond the range of {form.name}; export with --to hf --dtype float32."
        )
    return gguf.quants.quantize(values, form)
