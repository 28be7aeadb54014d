"""What tells one embedder from another."""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from embed.network.config import EmbedderConfig
from embed.network.network import Network
from gpt_core.common.files import sha256_file
from gpt_core.tokenizer.tokenizer import Tokenizer

# Of a GPT's shape, what came later, with the value that all had before
LATER = {"scale_attention": True, "window": None, "window_layers": (), "rope_scaling": None}


def fingerprint(
    weights_sha256: str | None,
    network: Network,
    tokenizer: Tokenizer,
    config: EmbedderConfig,
    max_tokens: int,
    truncate_dim: int | None,
) -> str:
    """Hex digest over what decides a vector: weights, graph, tokenizer, pooling, prompts, longest input.

    What came later enters where it differs from what was before, so older indexes still know their embedder.

    Args:
        weights_sha256: from `files_sha256`; None: the GPT's tensors are hashed.
        network: the embedder.
        tokenizer: the GPT's.
        config: the settings.
        max_tokens: the longest input.
        truncate_dim: dimensions of a vector that are kept; None: all.
    """
    weights = weights_sha256 or tensors_sha256(network.gpt)
    shape = asdict(replace(network.gpt.config, dropout=0.0, bos_id=None, eos_id=None, pad_id=None))
    graph = {key: value for key, value in shape.items() if key not in LATER or value != LATER[key]}
    pooling, prompts = asdict(config.pooling), [config.query_prompt, config.document_prompt]
    if not config.pooling.final_norm:
        del pooling["final_norm"]
    decides: list[Any] = [weights, graph, tokenizer.fingerprint, pooling, prompts, max_tokens]
    for layer in network.dense_layers:
        decides.append([layer.activation, tensors_sha256(layer)])
    if truncate_dim is not None:
        decides.append({"truncate_dim": truncate_dim})
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()


def files_sha256(folder: Path) -> str | None:
    """Hex digest over the files of a model folder that hold its weights; None for a folder with others."""
    # a checkpoint has safetensors of its optimizer, too
    files = sorted([*folder.glob("model*.safetensors"), *folder.glob("*.gguf")])
    files = files or sorted(folder.glob("pytorch_model*.bin"))
    hashes = "".join(sha256_file(p) for p in files)
    return hashlib.sha256(hashes.encode()).hexdigest() if files else None


def tensors_sha256(model: nn.Module) -> str:
    """Hex digest over names, shapes and bits of a model's tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
