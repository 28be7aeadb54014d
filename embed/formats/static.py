"""Static embedders: a table of token vectors, as sentence-transformers' `StaticEmbedding`.

model.safetensors    the table, `embedding.weight` (V, d)
tokenizer.json       used without special tokens
modules.json, 1_Normalize/, config_sentence_transformers.json
embedder.json        all settings, for this package
"""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gpt_core.common.errors import InputError
from gpt_core.common.files import atomic_write
from gpt_core.model.config import MAX_DIMENSION, GPTConfig
from gpt_core.model.gpt import GPT

WEIGHT = "embedding.weight"


def table_shape(vocab_size: int, dimension: int) -> GPTConfig:
    """The shape of a GPT that is a table of token vectors: no blocks, no positions, no longest text."""
    return GPTConfig(
        vocab_size=vocab_size,
        block_size=MAX_DIMENSION,
        n_layer=0,
        n_head=1,
        n_embd=dimension,
        position="alibi",
    )


def is_table(config: GPTConfig) -> bool:
    """Whether a GPT of this shape is a table of token vectors."""
    return config.n_layer == 0 and config.position == "alibi"


def load_table(folder: Path) -> GPT:
    """The table in `folder`, in float32.

    Raises:
        InputError: for a file that is missing, damaged, or has no table.
    """
    path = folder / "model.safetensors"
    try:
        with safe_open(path, "pt") as file:
            weight = file.get_tensor(WEIGHT).float()
    except FileNotFoundError:
        raise InputError(f"{folder} has no model.safetensors; copy the folder again.") from None
    except SafetensorError as error:
        raise InputError(f"{path} has no table {WEIGHT} of token vectors: {error}") from error
    if weight.dim() != 2:
        raise InputError(f"{path} has a table of shape {tuple(weight.shape)}; expected (tokens, dimension).")
    gpt = GPT(table_shape(*weight.shape))
    gpt.wte.weight = torch.nn.Parameter(weight)
    return gpt.eval()


def save_table(folder: Path, weight: Tensor) -> None:
    """Write the table (V, d) to `folder`."""
    atomic_write(folder / "model.safetensors", save({WEIGHT: weight.contiguous()}, metadata={"format": "pt"}))
