"""The encoder: texts to unit vectors, with prompts, length-sorted batches, early exit and pooling."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from embed.data.vectors import Vectors, unit_length
from embed.encoding.embedder import Embedder, PromptName
from embed.encoding.fingerprint import files_sha256, fingerprint
from embed.formats.folder import load_network, model_folder
from embed.formats.settings import load_settings
from embed.network.config import EmbedderConfig
from embed.network.network import Dense, Network
from embed.network.padding import grouped, padded
from embed.network.pooling import pool
from embed.network.quantize import Precision, quantize_embeddings
from gpt_core.common.errors import InputError
from gpt_core.hardware.device import DeviceName, Numerics, pick_device
from gpt_core.hardware.onednn import fast_linear
from gpt_core.hub.locate import resolve
from gpt_core.model.cache import Cache
from gpt_core.model.gpt import GPT
from gpt_core.tokenizer.tokenizer import Tokenizer

# Padding included. On a CPU larger batches are slower (20 % at 4,096 tokens of SmolLM2's width): page faults and cache
# misses.
TOKENS_PER_BATCH = {"cpu": 2048, "cuda": 65536, "mps": 65536}

Dtype = Literal["float32", "bfloat16", "float16"]


class Encoder(Embedder):
    """A GPT with pooling, prompts and a maximum length.

    A vector depends only on its text, not on the batch, except for float32 rounding of about 1e-6. Special tokens in a
    text are tokenised as plain text; sentence-transformers parses them as special tokens.

    Attributes:
        network: the GPT with its pooling and dense layers.
        model: the GPT.
        onednn: whether matrix products on a CPU use oneDNN; None (default): chosen by `capability`.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        config: EmbedderConfig | None = None,
        *,
        dense: Sequence[Dense] = (),
        name: str = "",
        weights_sha256: str | None = None,
        truncate_dim: int | None = None,
        dtype: Dtype = "float32",
    ) -> None:
        """Make an embedder from a GPT in memory.

        Args:
            model: any GPT; it is set to evaluation mode.
            tokenizer: the model's tokenizer.
            config: the settings; None: SGPT's weighted mean of the last layer, without prompts.
            dense: layers after the pooling.
            name: the embedder's name in messages.
            weights_sha256: hash of the model's files; None: `fingerprint` hashes the tensors on first use.
            truncate_dim: keep the first n dimensions of a vector and normalise them; None: all.
            dtype: dtype of the GPT's matrix products; bfloat16 has 8 significant bits, float32 has 24. Vectors and
                sums over tokens are always float32.

        Raises:
            InputError: for a pooling layer that the model does not have, dense layers whose sizes do not match, an
                unknown dtype, or a truncate_dim above the vector's dimension.
        """
        if dtype not in get_args(Dtype):
            raise InputError(f"dtype is {dtype!r}; expected one of {', '.join(get_args(Dtype))}.")
        self.config = config or EmbedderConfig()
        self.network = Network(model, self.config.pooling, dense).eval()
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.n_truncated = 0
        self.folder = None
        self.onednn: bool | None = None
        self.truncate_dim = self._check_dimension(truncate_dim)
        self.dtype = dtype
        self._weights_sha256 = weights_sha256
        self.max_tokens = min(self.config.max_tokens or model.config.block_size, model.config.block_size)
        self._prefix, self._suffix = ([], []) if self.network.is_table else special_tokens(tokenizer)

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path,
        *,
        truncate_dim: int | None = None,
        dtype: Dtype = "float32",
        device: DeviceName = "cpu",
    ) -> "Encoder":
        """Load a model with its tokenizer and settings (`load_settings`).

        Args:
            name_or_folder: a known name, a run's out_dir, or the folder of a model, an embedder or a
                sentence-transformers model.
            truncate_dim: as for the constructor.
            dtype: as for the constructor.
            device: device of the network.

        Raises:
            InputError: for an unknown name, or a folder with a missing file or an unsupported module.
        """
        folder = resolve(name_or_folder)
        config = load_settings(folder)
        network = load_network(folder, config).to(pick_device(device))
        place = model_folder(folder)
        encoder = cls(
            network.gpt,
            Tokenizer.from_pretrained(place),
            config,
            dense=network.dense_layers,
            name=str(name_or_folder),
            weights_sha256=files_sha256(place),
            truncate_dim=truncate_dim,
            dtype=dtype,
        )
        encoder.folder = folder.resolve()
        return encoder

    @property
    def dimension(self) -> int:
        """Number of dimensions of a vector."""
        return self.truncate_dim or self.network.dimension

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of everything that determines a vector; see `embed.encoding.fingerprint`."""
        return fingerprint(
            self._weights_sha256,
            self.network,
            self.tokenizer,
            self.config,
            self.max_tokens,
            self.truncate_dim,
        )

    def count_tokens(self, texts: Sequence[str], prompt: str = "") -> list[int]:
        """Number of tokens of each text including `prompt` and special tokens, before truncation to `max_tokens`."""
        rows = self.tokenizer.encode_batch([prompt + text for text in texts])
        return [len(self._prefix) + len(ids) + len(self._suffix) for ids in rows]

    @torch.inference_mode()
    def encode(
        self,
        texts: str | Sequence[str],
        prompt_name: PromptName | None = None,
        prompt: str | None = None,
        *,
        max_tokens: int | None = None,
        truncate_dim: int | None = None,
        precision: Precision = "float32",
        ranges: Vectors | None = None,
        show_progress_bar: bool = False,
    ) -> NDArray[Any]:
        """Encode texts.

        Args:
            texts: one text or several.
            prompt_name: "query" or "document": the prompt to prepend to each text and to tokenise with it.
            prompt: a prompt to prepend instead; None and no prompt_name: no prompt.
            max_tokens: longest input in tokens, prompt and special tokens included; None or more than the embedder's
                own limit: that limit. `n_truncated` counts truncated texts.
            truncate_dim: as for the constructor, for this call.
            precision: see `quantize_embeddings`.
            ranges: (2, d) from `fit_ranges` over a corpus, for int8 and uint8; None: fitted on these texts.
            show_progress_bar: whether to draw a progress bar if stderr is a terminal.

        Returns:
            (n, dimension) float32 vectors of unit length, or their codes for another `precision`; (1, dimension) for a
            single text. An empty text is encoded as its prompt and special tokens; without any token, its vector is
            zero and has similarity 0 to every vector.

        Raises:
            InputError: for a text that is not a string, an unknown prompt_name or precision, a max_tokens without
                space for a token, or a truncate_dim out of range.
        """
        texts = self._prompted(texts, prompt_name, prompt)
        n_dims = self.dimension
        if truncate_dim is not None:
            n_dims = self._check_dimension(truncate_dim) or self.network.dimension
        vectors = np.zeros((len(texts), n_dims), dtype=np.float32)
        bar = tqdm(
            total=len(texts), unit=" texts", desc="encoding", disable=None if show_progress_bar else True
        )
        device = self.model.device
        with Numerics(device.type, self.dtype).autocast(), fast_linear(device, self.onednn):
            for places, ids, mask in self.batches(texts, max_tokens):
                vectors[places] = self.network(ids, mask)[:, :n_dims].cpu().numpy()
                bar.update(len(places))
        bar.close()
        return quantize_embeddings(unit_length(vectors), precision, ranges)

    @torch.inference_mode()
    def encode_with_states(
        self,
        texts: str | Sequence[str],
        prompt_name: PromptName | None = None,
        prompt: str | None = None,
        extra_tokens: int = 0,
    ) -> tuple[Vectors, Cache]:
        """Encode texts and return the KV cache of the same forward pass, for generation that continues the texts.

        The forward pass is shared as in GRIT (Muennighoff et al. 2024) and runs in the dtype of the weights. Text i is
        in slot i of the cache, prompt and special tokens included; `model(ids, cache=cache.rows([i]))` continues it.

        Args:
            texts: one or several; the cache has 2 · n_layer · n_kv_head · head_dim values per token, every slot with
                the length of the longest text.
            prompt_name, prompt: as for `encode`.
            extra_tokens: additional tokens that each slot can store after the longest text.

        Returns:
            (n, dimension) float32 unit vectors, and the cache with n slots.

        Raises:
            InputError: if the embedder does not use all blocks of the GPT, extra_tokens is negative, or a text is not a
                string or has no tokens.
        """
        layer, n_layer = self.config.pooling.layer, self.model.config.n_layer
        if layer is not None and (layer < n_layer or not self.config.pooling.final_norm):
            raise InputError(
                f"The embedder pools layer {layer} of {n_layer}; encode_with_states needs the last layer's states."
            )
        if extra_tokens < 0:
            raise InputError(f"extra_tokens is {extra_tokens}; expected at least 0.")
        rows = self.tokenize(self._prompted(texts, prompt_name, prompt))
        if [] in rows:
            raise InputError(
                f"Text {rows.index([])} has no tokens, and so no states to continue from; remove it."
            )
        vectors = np.zeros((len(rows), self.network.dimension), dtype=np.float32)
        longest = max(map(len, rows), default=1)
        cache = Cache(
            self.model.config, len(rows), self.model.device, self.model.dtype, longest + extra_tokens
        )
        for places, ids, mask in self._padded(rows):
            slots = cache.rows(places, [len(rows[i]) for i in places])
            hidden = self.model(ids, cache=slots, logits=False).hidden
            vectors[places] = self.network.vectors(pool(hidden, ids, mask, self.config.pooling)).cpu().numpy()
        return unit_length(vectors[:, : self.dimension]), cache

    def batches(
        self, texts: Sequence[str], max_tokens: int | None = None
    ) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Tokenised and padded batches of texts, longest texts first, within the token budget `TOKENS_PER_BATCH`.

        Yields:
            Positions in `texts` (B of them), ids (B, T) int64 padded on the right, and a mask (B, T) bool, true at real
            tokens. Texts without tokens are in no batch.
        """
        return self._padded(self.tokenize(texts, max_tokens))

    def _padded(self, rows: list[list[int]]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """`batches` of tokenised texts."""
        device = self.model.device
        real = [i for i, row in enumerate(rows) if row]
        for group in grouped([rows[i] for i in real], TOKENS_PER_BATCH[device.type]):
            places = [real[i] for i in group]
            yield places, *padded([rows[i] for i in places], device)

    def _check_dimension(self, n_dims: int | None) -> int | None:
        """`n_dims` if it is below the network's dimension, None if it is equal; InputError if it is out of range."""
        whole = self.network.dimension
        if n_dims is not None and (type(n_dims) is not int or not 1 <= n_dims <= whole):
            raise InputError(f"truncate_dim is {n_dims!r}; expected 1 to {whole}, the dimension of a vector.")
        return None if n_dims == whole else n_dims

    def tokenize(self, texts: Sequence[str], max_tokens: int | None = None) -> list[list[int]]:
        """Token ids of each text, truncated to `max_tokens`; the special tokens are kept."""
        limit = self.max_tokens if max_tokens is None else min(max_tokens, self.max_tokens)
        n_free = limit - len(self._prefix) - len(self._suffix)
        if n_free < 1:
            raise InputError(
                f"max_tokens is {limit}; expected at least {limit - n_free + 1}: the special tokens and one more."
            )
        plain = self.tokenizer.encode_batch(list(texts))
        self.n_truncated += sum(len(ids) > n_free for ids in plain)
        return [self._prefix + ids[:n_free] + self._suffix for ids in plain]


def special_tokens(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer's post-processor adds before and after a text."""
    if not tokenizer.encode("", add_special_tokens=True):
        return [], []
    plain = tokenizer.encode("a")
    whole = tokenizer.encode("a", add_special_tokens=True)
    begin = next(i for i in range(len(whole)) if whole[i : i + len(plain)] == plain)
    return whole[:begin], whole[begin + len(plain) :]
