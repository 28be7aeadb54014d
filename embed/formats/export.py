"""The door that hands a model to other tools."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

from torch import nn

from embed.formats.folder import (
    VECTORS,
    beyond_sentence_transformers,
    load_network,
    model_folder,
    save_embedder,
)
from embed.formats.settings import load_settings
from embed.network.config import EmbedderConfig
from embed.network.network import Network
from gpt_core.common.errors import InputError
from gpt_core.common.files import atomic_folder, refuse_used
from gpt_core.formats.card import Card, derived
from gpt_core.formats.export import check_exportable, export_gguf, export_hf
from gpt_core.hub.locate import resolve
from gpt_core.tokenizer.tokenizer import Tokenizer

Dtype = Literal["float32", "bfloat16", "float16", "q8_0"]


def export_model(
    out: str, /, *, model: str, to: Literal["hf", "gguf", "sentence-transformers"], dtype: Dtype | None = None
) -> None:
    """Write a model as other tools open it, without code of ours.

    hf: a Hugging Face folder, for transformers, vLLM and what builds on them: the same logits and token ids.

    gguf: one file with the tokenizer and the chat template in it, for llama.cpp, Ollama, LM Studio: GPT-2, Llama and
    Qwen3 shapes, byte-level BPE.

    sentence-transformers: the same vectors (cosine above 0.9999) for queries and documents, there and in what builds
    on it, mteb among them. An embedder that pools a lower layer through the final norm becomes a model of so many
    layers. A plain GPT becomes the embedder that it is here, the weighted mean of its last layer.

    Of an embedder, hf and gguf take the language model alone. A README.md beside the model says what it is.

    Args:
        out: the folder to make; it must not exist or be empty.
        model: a model or embedder folder, a run's out_dir, or a known name.
        to: the tools.
        dtype: of the weights. hf: float32 (default), bfloat16 or float16; gguf: float16 (default), or q8_0, which is
            half as large; sentence-transformers: float32.
    """
    target = Path(out)
    refuse_used(target)
    folder = resolve(model)
    card = derived(model, folder)
    card = replace(card, sections={name: text for name, text in card.sections.items() if name != VECTORS})
    if to == "hf" and dtype != "q8_0":
        export_hf(model_folder(folder), target, dtype or "float32", card)
        print(f'{target}: AutoModelForCausalLM.from_pretrained("{target}") opens it')
    elif to == "gguf" and dtype in (None, "float16", "q8_0"):
        file = export_gguf(model_folder(folder), target, "q8_0" if dtype == "q8_0" else "float16", card)
        print(f"{file}: {file.stat().st_size / 2**20:,.1f} MiB, for llama.cpp")
    elif to == "sentence-transformers" and dtype in (None, "float32"):
        export_embedder(folder, target, model, card)
    else:
        wanted = {"hf": "float32, bfloat16 or float16", "gguf": "float16 or q8_0"}.get(to, "float32")
        raise InputError(f"--to {to} has no dtype {dtype}; expected {wanted}.")


def export_embedder(folder: Path, target: Path, model: str, card: Card) -> None:
    """Write what `folder` holds as sentence-transformers opens it.

    Args:
        folder: an embedder's or a model's.
        target: the folder to make.
        model: what the user calls it.
        card: what README.md is to say beside the shape.

    Raises:
        InputError: as `check_exportable`, and for a pooling that sentence-transformers has no words for.
    """
    config = load_settings(folder)
    tokenizer = Tokenizer.from_pretrained(model_folder(folder))
    network = load_network(folder, config)
    check_exportable(network.gpt.config, tokenizer, model)
    network, config = truncated(network, config)
    if reason := beyond_sentence_transformers(network.pooling, network.gpt.config):
        raise InputError(
            f"{model} cannot be exported to sentence-transformers: {reason}, for which there are no words there. Train "
            "it as an embedder, or write other settings into its embedder.json."
        )
    if config.corpus_map != "none":
        print(
            f"{model}: the {config.corpus_map} map that an index fits on its corpus is no part of a vector; "
            "whoever searches elsewhere does without it.",
            file=sys.stderr,
        )
    with atomic_folder(target) as scratch:
        save_embedder(scratch, network, config, tokenizer, card=card)
    print(f'{target}: SentenceTransformer("{target}") gives vectors of {network.dimension} numbers')


def truncated(network: Network, config: EmbedderConfig) -> tuple[Network, EmbedderConfig]:
    """A network that pools a lower layer through the final norm, without the blocks above; others as they are.

    The GPT is changed, not copied.
    """
    gpt, pooling = network.gpt, config.pooling
    if not pooling.layer or not pooling.final_norm:  # layer 0: a GPT has at least one block
        return network, config
    gpt.blocks = nn.ModuleList(list(gpt.blocks)[: pooling.layer])
    gpt.config = replace(gpt.config, n_layer=pooling.layer)
    config = replace(config, pooling=replace(pooling, layer=None, final_norm=False))
    return Network(gpt, config.pooling, network.dense_layers).eval(), config
