"""Export a model for other tools: as a Hugging Face folder, or as one GGUF file."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from gpt_core.common.errors import InputError
from gpt_core.common.files import atomic_folder, atomic_write
from gpt_core.formats.card import Card, with_command, write_card
from gpt_core.formats.gguf.write import GGUFDtype, check_graph, write_gguf
from gpt_core.model.config import GPTConfig
from gpt_core.model.gpt import GPT
from gpt_core.tokenizer.tokenizer import Tokenizer

HFDtype = Literal["float32", "bfloat16", "float16"]


def export_hf(folder: Path, target: Path, dtype: HFDtype = "float32", card: Card | None = None) -> None:
    """Export a model folder for transformers and vLLM: model, tokenizer, chat template, generation settings.

    Args:
        folder: a model folder.
        target: the output folder.
        dtype: of the weights; float32 keeps them unchanged.
        card: the content of README.md besides the shape.

    Raises:
        InputError: for a model without a matching tokenizer, or one that no Hugging Face family computes.
        OSError: if it cannot be written; `target` does not exist then.
    """
    model, tokenizer = load(folder)
    weights = {name: w.to(getattr(torch, dtype)) for name, w in model.state_dict().items()}
    for name, w in weights.items():
        if not w.isfinite().all():
            raise InputError(
                f"{name} has values beyond {dtype}'s range; export with --dtype bfloat16 or float32."
            )
    with atomic_folder(target) as scratch:
        model.save_pretrained(scratch, weights, card)
        tokenizer.save(scratch)
        settings = json.loads((scratch / "tokenizer_config.json").read_text(encoding="utf-8"))
        settings["model_max_length"] = model.config.block_size
        content = json.dumps(settings, indent=2, ensure_ascii=False)
        atomic_write(scratch / "tokenizer_config.json", content + "\n")


def export_gguf(folder: Path, target: Path, dtype: GGUFDtype = "float16", card: Card | None = None) -> Path:
    """Export a model folder as one GGUF file, named after `target`, which includes the tokenizer.

    Args:
        folder: a model folder.
        target: the output folder.
        dtype: of the matrices.
        card: the content of README.md besides the shape.

    Returns:
        The file.

    Raises:
        InputError: for a model without a matching tokenizer, or a graph or tokenizer that llama.cpp does not support.
        OSError: if it cannot be written; `target` does not exist then.
    """
    model, tokenizer = load(folder)
    check_graph(model.config)
    file = f"{target.name}-{'Q8_0' if dtype == 'q8_0' else 'F16'}.gguf"
    with atomic_folder(target) as scratch:
        card = with_command(card or Card())
        kept = write_gguf(scratch / file, model, tokenizer, dtype, name=target.name, licence=card.licence)
        head = {"library_name": "gguf", "tags": ["zhizhi", model.config.model_type, "gguf"]} | card.head
        n_parameters = sum(p.numel() for p in model.parameters())
        write_card(scratch, replace(card, head=head), model.config, n_parameters, dtype)
    if model.config.mlp == "gelu_erf":
        print(
            "llama.cpp computes the tanh form of GELU, which is within 5e-4 of this model's exact GELU",
            file=sys.stderr,
        )
    if kept:
        print(
            f"{len(kept)} matrices stayed float16, first {kept[0]}: q8_0 requires a row length that is a multiple of "
            "32",
            file=sys.stderr,
        )
    return target / file


def load(folder: Path) -> tuple[GPT, Tokenizer]:
    """The model and the tokenizer of a folder.

    Special ids that the model's config lacks come from the tokenizer, whose end-of-text token is one of the model's.

    Raises:
        InputError: for a model without a tokenizer, or as `check_exportable`.
    """
    model, tokenizer = GPT.from_pretrained(folder), Tokenizer.from_pretrained(folder)
    check_exportable(model.config, tokenizer, str(folder))
    ids = {name: getattr(model.config, name) for name in ("bos_id", "pad_id")}
    ids = {name: getattr(tokenizer, name) if i is None else i for name, i in ids.items()}
    model.config = replace(model.config.with_eos(tokenizer.eos_ids), **ids)
    return model, tokenizer


def check_exportable(config: GPTConfig, tokenizer: Tokenizer, name: str) -> None:
    """Check that other tools can load the model.

    Args:
        config: the model's config.
        tokenizer: the model's tokenizer.
        name: the model's name for messages.

    Raises:
        InputError: for ALiBi, which no export format supports, or a tokenizer with more tokens than the model's
            vocabulary.
    """
    if config.position == "alibi":
        raise InputError(
            f"{name} has ALiBi positions, which no export format supports; use the model with this package."
        )
    if tokenizer.vocab_size > config.vocab_size:
        raise InputError(
            f"{name} has a tokenizer of {tokenizer.vocab_size} tokens and a model of {config.vocab_size}; put "
            "the model's own tokenizer there."
        )
