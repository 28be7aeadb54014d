"""Fingerprint of an embedder: a hash of everything that determines its vectors."""

import base64
import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from embed.data.vectors import Vectors, unit_length
from embed.network.config import EmbedderConfig
from embed.network.network import Network
from gpt_core.common.files import sha256_file
from gpt_core.hub.locate import ADAPTER_CONFIG
from gpt_core.tokenizer.tokenizer import Tokenizer

PROBE_DIMENSIONS = 16
MIN_COSINE = 0.99  # of the probes of one model on different machines; other models' have one near 0

# GPTConfig fields added after the first fingerprints, with the values that all models had before. A field enters the
# fingerprint only if it differs from this value, so that existing indexes still match their embedder.
LATER_FIELDS = {"scale_attention": True, "window": None, "window_layers": (), "rope_scaling": None}


def fingerprint(
    weights_sha256: str | None,
    network: Network,
    tokenizer: Tokenizer,
    config: EmbedderConfig,
    max_tokens: int,
    truncate_dim: int | None,
) -> str:
    """Hex digest of everything that determines a vector: weights, shape, tokenizer, pooling, prompts, longest input.

    Args:
        weights_sha256: from `files_sha256`; None: the GPT's tensors are hashed.
        network: the embedder.
        tokenizer: the GPT's tokenizer.
        config: the settings.
        max_tokens: longest input in tokens.
        truncate_dim: dimensions after truncation; None: all.
    """
    weights = weights_sha256 or tensors_sha256(network.gpt)
    shape = asdict(replace(network.gpt.config, dropout=0.0, bos_id=None, eos_id=None, pad_id=None))
    graph = {
        key: value for key, value in shape.items() if key not in LATER_FIELDS or value != LATER_FIELDS[key]
    }
    pooling, prompts = asdict(config.pooling), [config.query_prompt, config.document_prompt]
    if not config.pooling.final_norm:
        del pooling["final_norm"]
    decides: list[Any] = [weights, graph, tokenizer.fingerprint, pooling, prompts, max_tokens]
    for layer in network.dense_layers:
        decides.append([layer.activation, tensors_sha256(layer)])
    if truncate_dim is not None:
        decides.append({"truncate_dim": truncate_dim})
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()


def with_probes(decides: list[Any], vectors: Vectors) -> str:
    """The fingerprint of an embedder whose files are elsewhere.

    Args:
        decides: what is known of it, JSON-serialisable; it enters as a hash.
        vectors: (n, d) unit vectors of fixed texts, of which the first `PROBE_DIMENSIONS` enter as numbers.
    """
    digest = hashlib.sha256(json.dumps(decides).encode()).hexdigest()
    first = np.ascontiguousarray(vectors[:, :PROBE_DIMENSIONS], dtype="<f2")
    return f"{digest}:{base64.b64encode(first.tobytes()).decode()}"


def same(a: str, b: str) -> bool:
    """Whether two fingerprints are of one embedder; vectors in them are compared with tolerance for rounding."""
    (known_a, _, probes_a), (known_b, _, probes_b) = a.partition(":"), b.partition(":")
    if known_a != known_b or not probes_a:
        return a == b
    first, second = (
        np.frombuffer(base64.b64decode(probes), dtype="<f2").astype(np.float32)[None]
        for probes in (probes_a, probes_b)
    )
    return bool((unit_length(first) @ unit_length(second).T).item() > MIN_COSINE)


def files_sha256(folder: Path) -> str | None:
    """Hex digest of a model folder's weight files; None if the folder has none of a known name, or an adapter."""
    if (folder / ADAPTER_CONFIG).exists():  # its base model may be elsewhere
        return None
    # Only model*.safetensors: a checkpoint also has safetensors of its optimizer.
    files = sorted([*folder.glob("model*.safetensors"), *folder.glob("*.gguf")])
    files = files or sorted(folder.glob("pytorch_model*.bin"))
    hashes = "".join(sha256_file(p) for p in files)
    return hashlib.sha256(hashes.encode()).hexdigest() if files else None


def tensors_sha256(model: nn.Module) -> str:
    """Hex digest of the names, dtypes, shapes and bytes of a model's tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
