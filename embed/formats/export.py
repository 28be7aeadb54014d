"""The command that exports a model for other tools."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from embed.formats.folder import (
    VECTORS,
    beyond_sentence_transformers,
    has_own_code,
    load_network,
    model_folder,
    save_embedder,
)
from embed.formats.settings import load_settings
from embed.formats.static import is_table
from embed.network.config import EmbedderConfig
from embed.network.network import Network
from gpt_core.common.errors import InputError
from gpt_core.common.files import atomic_folder, require_empty_folder
from gpt_core.formats.card import Card, derived
from gpt_core.formats.export import check_exportable, export_gguf, export_hf
from gpt_core.hub.locate import resolve
from gpt_core.tasks.folder import export_lora
from gpt_core.tokenizer.tokenizer import Tokenizer

Dtype = Literal["float32", "bfloat16", "float16", "q8_0"]


def export_model(
    out: str,
    /,
    *,
    model: str,
    to: Literal["hf", "gguf", "sentence-transformers", "lora"],
    dtype: Dtype | None = None,
) -> None:
    """Export a model to a format that other tools open without this package, or to a small folder for this package.

    hf: a Hugging Face folder for transformers, vLLM and tools based on them, with equal logits and token ids.

    gguf: one file with the tokenizer and the chat template, for llama.cpp, Ollama and LM Studio. Supports GPT-2, Llama
    and Qwen3 architectures with byte-level BPE.

    sentence-transformers: equal vectors (cosine above 0.9999) for queries and documents in sentence-transformers and
    tools based on it, such as mteb. An embedder that pools a lower layer with the final norm is exported without the
    blocks above that layer. A plain GPT is exported as an embedder with the weighted mean of its last layer.

    lora: what scripts/finetune.py changed by `trainable: lora` for a task: a few MB, which this package loads together
    with the model that the training started from.

    For an embedder, hf and gguf export the language model only. A README.md (model card) is written beside the model.

    Args:
        out: the output folder; it must be missing or empty.
        model: a model or embedder folder, a run's out_dir, or a known name.
        to: the target format.
        dtype: dtype of the weights. hf: float32 (default), bfloat16 or float16; gguf: float16 (default), or q8_0, which
            is half as large; lora: bfloat16 (default) or float32; sentence-transformers: float32 (default), or bfloat16
            on disk; it computes with float32 then, but with bfloat16 for a table of token vectors, whose lengths it
            rounds.
    """
    target = Path(out)
    require_empty_folder(target)
    folder = resolve(model)
    card = derived(model, folder)
    card = replace(card, sections={name: text for name, text in card.sections.items() if name != VECTORS})
    if to == "hf" and dtype != "q8_0":
        export_hf(model_folder(folder), target, dtype or "float32", card)
        print(f'{target}: AutoModelForCausalLM.from_pretrained("{target}") opens it')
    elif to == "gguf" and dtype in (None, "float16", "q8_0"):
        file = export_gguf(model_folder(folder), target, "q8_0" if dtype == "q8_0" else "float16", card)
        print(f"{file}: {file.stat().st_size / 2**20:,.1f} MiB, for llama.cpp")
    elif to == "sentence-transformers" and dtype in (None, "float32", "bfloat16"):
        export_embedder(folder, target, model, card, getattr(torch, dtype or "float32"))
    elif to == "lora" and dtype in (None, "float32", "bfloat16"):
        export_lora(folder, target, getattr(torch, dtype or "bfloat16"), card)
        size = sum(file.stat().st_size for file in target.iterdir())
        print(f"{target}: {size / 2**20:,.1f} MiB, for finetune.py --predict and the reader of answers")
    else:
        wanted = {"hf": "float32, bfloat16 or float16", "gguf": "float16 or q8_0"}.get(
            to, "float32 or bfloat16"
        )
        raise InputError(f"--to {to} has no dtype {dtype}; expected {wanted}.")


def export_embedder(folder: Path, target: Path, model: str, card: Card, dtype: torch.dtype) -> None:
    """Export the embedder or model in `folder` to a sentence-transformers folder.

    Args:
        folder: the folder of an embedder or a plain model.
        target: the output folder.
        model: the model's name in messages.
        card: contents of README.md; the model's shape and vectors are added.
        dtype: of the weights on disk.

    Raises:
        InputError: as `check_exportable`, and for a pooling that sentence-transformers does not support.
    """
    config = load_settings(folder)
    tokenizer = Tokenizer.from_pretrained(model_folder(folder))
    network = load_network(folder, config)
    if not is_table(network.gpt.config):
        check_exportable(network.gpt.config, tokenizer, model)
    network, config = truncated(network, config)
    if reason := beyond_sentence_transformers(network.pooling, network.gpt.config):
        raise InputError(
            f"{model} cannot be exported to sentence-transformers, which does not support its pooling: {reason}. Train "
            "it as an embedder, or change the settings in its embedder.json."
        )
    if config.corpus_map != "none":
        print(
            f"{model}: the exported vectors are raw; the {config.corpus_map} corpus map is fitted by this project's "
            "index only, and other tools search without it.",
            file=sys.stderr,
        )
    with atomic_folder(target) as scratch:
        save_embedder(scratch, network, config, tokenizer, card=card, dtype=dtype)
    trust = ", trust_remote_code=True" if has_own_code(target) else ""
    print(
        f'{target}: SentenceTransformer("{target}"{trust}) returns vectors of {network.dimension} dimensions'
    )


def truncated(network: Network, config: EmbedderConfig) -> tuple[Network, EmbedderConfig]:
    """Remove the unused blocks of a network that pools a lower layer with the final norm.

    The GPT is modified in place. Other networks are returned unchanged.
    """
    gpt, pooling = network.gpt, config.pooling
    if not pooling.layer or not pooling.final_norm:  # layer 0 stays: other tools expect at least one block
        return network, config
    gpt.keep_blocks(pooling.layer)
    config = replace(config, pooling=replace(pooling, layer=None, final_norm=False))
    return Network(gpt, config.pooling, network.dense_layers).eval(), config
