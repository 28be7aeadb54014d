"""Texts to unit vectors: prompts, length-sorted batches, early exit, pooling."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from embed.config import EmbedderConfig
from embed.maps import Vectors, unit_length
from embed.pooling import pool
from gpt_core.errors import InputError
from gpt_core.files import sha256_file
from gpt_core.hub import resolve
from gpt_core.model import GPT
from gpt_core.tokenizer import Tokenizer

# Padding included. On a CPU a larger batch gains nothing and costs page faults: glibc maps each tensor of more than
# 32 MiB anew, which took a fifth of the time at 16384 tokens.
TOKENS_PER_BATCH = {"cpu": 4096, "cuda": 65536, "mps": 65536}


class Encoder:
    """A GPT with pooling, prompts and a length limit: an embedder.

    A vector depends on its text alone: never on the batch, beyond float32 rounding of about 1e-6.

    Attributes:
        n_truncated: how many texts have been cut to fit since the encoder was made.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        config: EmbedderConfig | None = None,
        *,
        name: str = "",
        weights_sha256: str | None = None,
    ) -> None:
        """Make an embedder of a GPT in memory.

        Args:
            model: any GPT; it is put into evaluation mode.
            tokenizer: the model's own.
            config: the settings; None for SGPT's plain weighted mean of the last layer.
            name: what messages call the embedder.
            weights_sha256: hash of the model's file; None to hash the tensors once `fingerprint` is asked for.

        Raises:
            InputError: for a layer that the model does not have.
        """
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.config = config or EmbedderConfig()
        self.name = name
        self.n_truncated = 0
        self._weights_sha256 = weights_sha256
        layer = self.config.pooling.layer
        if layer is not None and layer > model.config.n_layer:
            raise InputError(
                f"The embedder pools layer {layer}; its model has {model.config.n_layer} layers."
            )
        self.max_tokens = min(self.config.max_tokens or model.config.block_size, model.config.block_size)
        self._prefix, self._suffix = special_tokens(tokenizer)

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path) -> "Encoder":
        """Load a model with its tokenizer and settings; see `EmbedderConfig.load` for where these come from.

        Raises:
            InputError: for an unknown name, or a folder that lacks a part.
        """
        folder = resolve(name_or_folder)
        files = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".gguf"))
        hashes = "".join(sha256_file(p) for p in files)
        return cls(
            GPT.from_pretrained(folder),
            Tokenizer.from_pretrained(folder),
            EmbedderConfig.load(folder),
            name=str(name_or_folder),
            weights_sha256=hashlib.sha256(hashes.encode()).hexdigest(),
        )

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self.model.config.n_embd

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest over what decides a vector: weights, graph, tokenizer, pooling, prompts, longest input."""
        weights = self._weights_sha256 or _tensors_sha256(self.model)
        prompts = [self.config.query_prompt, self.config.document_prompt]
        graph = asdict(replace(self.model.config, dropout=0.0, bos_id=None, eos_id=None, pad_id=None))
        pooling, tokenizer = asdict(self.config.pooling), self.tokenizer.fingerprint
        decides = [weights, graph, tokenizer, pooling, prompts, self.max_tokens]
        return hashlib.sha256(json.dumps(decides).encode()).hexdigest()

    def encode_query(self, texts: str | Sequence[str], max_tokens: int | None = None) -> Vectors:
        """`encode` with the prompt for queries."""
        return self.encode(texts, self.config.query_prompt, max_tokens)

    def encode_document(
        self, texts: str | Sequence[str], max_tokens: int | None = None, progress: bool = False
    ) -> Vectors:
        """`encode` with the prompt for documents."""
        return self.encode(texts, self.config.document_prompt, max_tokens, progress)

    def count_tokens(self, texts: Sequence[str], prompt: str = "") -> list[int]:
        """Tokens of each text with `prompt` before it and special tokens: `encode` cuts what has over `max_tokens`."""
        rows = self.tokenizer.encode_batch([prompt + text for text in texts], add_special_tokens=True)
        return [len(ids) for ids in rows]

    @torch.inference_mode()
    def encode(
        self,
        texts: str | Sequence[str],
        prompt: str = "",
        max_tokens: int | None = None,
        progress: bool = False,
    ) -> Vectors:
        """Encode texts.

        Args:
            texts: one text or several.
            prompt: put before each text and tokenised with it.
            max_tokens: longest input in tokens, prompt and special tokens included; None, or more than the
                embedder's own limit, for that limit. What is cut is counted in `n_truncated`.
            progress: draw a progress bar when stderr is a terminal.

        Returns:
            (n, dimension) float32 vectors of unit length; a single text gives one row. An empty text is its prompt
            and special tokens alone; where there are none either, zeros, whose similarity to everything is 0.
        """
        texts = [texts] if isinstance(texts, str) else texts
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        bar = tqdm(total=len(texts), unit=" texts", desc="encoding", disable=None if progress else True)
        for places, ids, mask in self.batches([prompt + text for text in texts], max_tokens):
            # Padding on the right needs no mask of its own: no real token looks to its right.
            out = self.model(ids, logits=False, layer=self.config.pooling.layer)
            vectors[places] = pool(out.hidden, mask, self.config.pooling).cpu().numpy()
            bar.update(len(places))
        bar.close()
        return unit_length(vectors)

    def batches(
        self, texts: Sequence[str], max_tokens: int | None = None
    ) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Texts as the model takes them: longest first, as many at a time as fit the token budget when padded.

        Yields:
            Places in `texts` (B of them), ids (B, T) padded on the right, and a mask (B, T), true at real tokens. A
            text without tokens is in no batch.
        """
        rows = self.tokenize(texts, max_tokens)
        budget = TOKENS_PER_BATCH[self.model.device.type]
        order = sorted((i for i in range(len(rows)) if rows[i]), key=lambda i: len(rows[i]), reverse=True)
        begin = 0
        while begin < len(order):
            places = order[begin : begin + max(1, budget // len(rows[order[begin]]))]
            begin += len(places)
            ids = torch.zeros((len(places), len(rows[places[0]])), dtype=torch.long)
            mask = torch.zeros_like(ids, dtype=torch.bool)
            for row, i in enumerate(places):
                ids[row, : len(rows[i])] = torch.tensor(rows[i])
                mask[row, : len(rows[i])] = True
            yield places, ids.to(self.model.device), mask.to(self.model.device)

    def tokenize(self, texts: Sequence[str], max_tokens: int | None = None) -> list[list[int]]:
        """Ids with the tokenizer's special tokens, which survive the cut to `max_tokens`."""
        limit = min(max_tokens or self.max_tokens, self.max_tokens)
        room = limit - len(self._prefix) - len(self._suffix)
        if room < 1:
            raise InputError(f"max_tokens is {limit}; expected room for a token beside the special tokens.")
        plain = self.tokenizer.encode_batch(list(texts))
        self.n_truncated += sum(len(ids) > room for ids in plain)
        return [self._prefix + ids[:room] + self._suffix for ids in plain]


def special_tokens(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer's post-processor puts before and after a text."""
    if not tokenizer.encode("", add_special_tokens=True):
        return [], []
    plain = tokenizer.encode("a")
    whole = tokenizer.encode("a", add_special_tokens=True)
    begin = next(i for i in range(len(whole)) if whole[i : i + len(plain)] == plain)
    return whole[:begin], whole[begin + len(plain) :]


def _tensors_sha256(model: GPT) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
