"""Texts to unit vectors: prompts, length-sorted batches, early exit, pooling."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from embed.data.vectors import Vectors, unit_length
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
from gpt_core.hardware.onednn import quick_products
from gpt_core.hub.locate import resolve
from gpt_core.model.cache import Cache
from gpt_core.model.gpt import GPT
from gpt_core.tokenizer.tokenizer import Tokenizer

# Padding included. On a CPU a larger batch gains nothing and costs page faults and cache misses: a fifth of the time at
# 4096 tokens of SmolLM2's width.
TOKENS_PER_BATCH = {"cpu": 2048, "cuda": 65536, "mps": 65536}

PromptName = Literal["query", "document"]
Dtype = Literal["float32", "bfloat16", "float16"]


class Encoder:
    """A GPT with pooling, prompts and a length limit: an embedder, with sentence-transformers' names.

    A vector depends on its text alone: never on the batch, beyond float32 rounding of about 1e-6. Text that spells a
    special token is text here; sentence-transformers reads it as that token.

    Attributes:
        network: the GPT with its pooling and dense layers; `model` is the GPT.
        n_truncated: how many texts have been cut to fit since the encoder was made.
        onednn: whether a CPU multiplies by oneDNN; None, as it begins: if that is faster, by a short measurement.
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
        """Make an embedder of a GPT in memory.

        Args:
            model: any GPT; it is put into evaluation mode.
            tokenizer: the model's own.
            config: the settings; None for SGPT's plain weighted mean of the last layer.
            dense: layers after the pooling.
            name: what messages call the embedder.
            weights_sha256: hash of the model's file; None to hash the tensors once `fingerprint` is asked for.
            truncate_dim: keep so many dimensions of a vector, the first ones, and bring them to unit length; None: all.
            dtype: of the GPT's matrix products; bfloat16 keeps 8 bits of a factor, float32 24. Vectors and sums over
                tokens are float32 in any case.

        Raises:
            InputError: for a layer that the model does not have, dense layers that do not fit, or a truncate_dim
                beyond the vector's length.
        """
        if dtype not in get_args(Dtype):
            raise InputError(f"dtype is {dtype!r}; expected one of {', '.join(get_args(Dtype))}.")
        self.config = config or EmbedderConfig()
        self.network = Network(model, self.config.pooling, dense).eval()
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.n_truncated = 0
        self.onednn: bool | None = None
        self.truncate_dim = self._check_dimension(truncate_dim)
        self.dtype = dtype
        self._weights_sha256 = weights_sha256
        self.max_tokens = min(self.config.max_tokens or model.config.block_size, model.config.block_size)
        self._prefix, self._suffix = special_tokens(tokenizer)

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path,
        *,
        truncate_dim: int | None = None,
        dtype: Dtype = "float32",
        device: DeviceName = "cpu",
    ) -> "Encoder":
        """Load a model with its tokenizer and settings; see `load_settings` for where these come from.

        Args:
            name_or_folder: a known name, a run's out_dir, or the folder of a model or an embedder, such as
                sentence-transformers writes it.
            truncate_dim: as for the constructor.
            dtype: likewise.
            device: where the network runs.

        Raises:
            InputError: for an unknown name, or a folder that lacks a part or has one that we do not have.
        """
        folder = resolve(name_or_folder)
        config = load_settings(folder)
        network = load_network(folder, config).to(pick_device(device))
        place = model_folder(folder)
        return cls(
            network.gpt,
            Tokenizer.from_pretrained(place),
            config,
            dense=network.dense_layers,
            name=str(name_or_folder),
            weights_sha256=files_sha256(place),
            truncate_dim=truncate_dim,
            dtype=dtype,
        )

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self.truncate_dim or self.network.dimension

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest over what decides a vector; see `embed.encoding.fingerprint`."""
        return fingerprint(
            self._weights_sha256,
            self.network,
            self.tokenizer,
            self.config,
            self.max_tokens,
            self.truncate_dim,
        )

    def encode_query(self, texts: str | Sequence[str], **options: Any) -> NDArray[Any]:
        """`encode` with the prompt for queries."""
        return self.encode(texts, "query", **options)

    def encode_document(self, texts: str | Sequence[str], **options: Any) -> NDArray[Any]:
        """`encode` with the prompt for documents."""
        return self.encode(texts, "document", **options)

    def similarity(self, a: Vectors, b: Vectors) -> Vectors:
        """Cosines (n, m) float32 of vectors (n, d) and (m, d), which need not be of unit length.

        Raises:
            InputError: for vectors of different lengths.
        """
        first, second = (np.atleast_2d(np.asarray(side, dtype=np.float32)) for side in (a, b))
        if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
            raise InputError(
                f"Vectors of shapes {first.shape} and {second.shape}; expected (n, d) and (m, d)."
            )
        return unit_length(first) @ unit_length(second).T

    def prompt(self, name: PromptName) -> str:
        """The prompt called `name`, "query" or "document"; InputError for another."""
        prompts = {"query": self.config.query_prompt, "document": self.config.document_prompt}
        if name not in prompts:
            raise InputError(f"prompt_name is {name!r}; an embedder has the prompts {' and '.join(prompts)}.")
        return prompts[name]

    def count_tokens(self, texts: Sequence[str], prompt: str = "") -> list[int]:
        """Tokens of each text with `prompt` before it and special tokens: `encode` cuts what has over `max_tokens`."""
        rows = self.tokenizer.encode_batch([prompt + text for text in texts], add_special_tokens=True)
        return [len(ids) for ids in rows]

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
            prompt_name: "query" or "document": that prompt goes before each text and is tokenised with it.
            prompt: what goes there instead; with neither, nothing.
            max_tokens: longest input in tokens, prompt and special tokens included; None, or more than the
                embedder's own limit, for that limit. What is cut is counted in `n_truncated`.
            truncate_dim: as for the constructor, for this call.
            precision: see `quantize_embeddings`.
            ranges: (2, d) from `fit_ranges` over a corpus, for int8 and uint8; None fits them on these very texts.
            show_progress_bar: draw one when stderr is a terminal.

        Returns:
            (n, dimension) float32 vectors of unit length, or what `precision` makes of them; a single text gives one
            row. An empty text is its prompt and special tokens alone; where there are none either, zeros, whose
            similarity to everything is 0.

        Raises:
            InputError: for a prompt or precision that there is not, or a length that cannot be.
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
        with Numerics(device.type, self.dtype).autocast(), quick_products(device, self.onednn):
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
        room: int = 0,
    ) -> tuple[Vectors, Cache]:
        """Encode texts and keep the keys and values that the GPT made of them, so that it can go on writing there.

        One forward serves both, as in GRIT (Muennighoff et al. 2024), in the weights' own number format. Text i lies in
        slot i of the cache, prompt and special tokens included; `model(ids, cache=cache.rows([i]))` continues it.

        Args:
            texts: one or several; their states take 2 · n_layer · n_kv_head · head_dim numbers a token of the longest.
            prompt_name, prompt: as for `encode`.
            room: tokens that each slot can take beyond the longest text.

        Raises:
            InputError: if the embedder does not run through all of the GPT, or a text is none or has no tokens.
        """
        layer, n_layer = self.config.pooling.layer, self.model.config.n_layer
        if layer is not None and (layer < n_layer or not self.config.pooling.final_norm):
            raise InputError(
                f"The embedder pools layer {layer} of {n_layer}; states to go on from need the whole GPT."
            )
        if room < 0:
            raise InputError(f"room is {room}; expected at least 0.")
        rows = self.tokenize(self._prompted(texts, prompt_name, prompt))
        if [] in rows:
            raise InputError(
                f"Text {rows.index([])} has no token, and so no states to go on from; leave it out."
            )
        vectors = np.zeros((len(rows), self.network.dimension), dtype=np.float32)
        longest = max(map(len, rows), default=1)
        cache = Cache(self.model.config, len(rows), self.model.device, self.model.dtype, longest + room)
        for places, ids, mask in self._padded(rows):
            slots = cache.rows(places, [len(rows[i]) for i in places])
            hidden = self.model(ids, cache=slots, logits=False).hidden
            vectors[places] = self.network.vectors(pool(hidden, mask, self.config.pooling)).cpu().numpy()
        return unit_length(vectors[:, : self.dimension]), cache

    def _prompted(
        self, texts: str | Sequence[str], prompt_name: PromptName | None, prompt: str | None
    ) -> list[str]:
        """Each text with its prompt before it; InputError for what is no text."""
        if isinstance(texts, str):
            texts = [texts]
        if not isinstance(texts, Iterable):
            raise InputError(f"texts is a {type(texts).__name__}; expected a string or several.")
        if prompt is None:
            prompt = self.prompt(prompt_name) if prompt_name else ""
        prompted = []
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(f"Text {i} is a {type(text).__name__}; expected a string.")
            prompted.append(prompt + text)
        return prompted

    def batches(
        self, texts: Sequence[str], max_tokens: int | None = None
    ) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Texts as the model takes them: longest first, as many at a time as fit the token budget when padded.

        Yields:
            Places in `texts` (B of them), ids (B, T) padded on the right, and a mask (B, T), true at real tokens. A
            text without tokens is in no batch.
        """
        return self._padded(self.tokenize(texts, max_tokens))

    def _padded(self, rows: list[list[int]]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """`batches` of texts that are tokens already."""
        device = self.model.device
        real = [i for i, row in enumerate(rows) if row]
        for group in grouped([rows[i] for i in real], TOKENS_PER_BATCH[device.type]):
            places = [real[i] for i in group]
            yield places, *padded([rows[i] for i in places], device)

    def _check_dimension(self, n_dims: int | None) -> int | None:
        """`n_dims` where it shortens a vector, None where it does not; InputError where it cannot."""
        whole = self.network.dimension
        if n_dims is not None and (type(n_dims) is not int or not 1 <= n_dims <= whole):
            raise InputError(f"truncate_dim is {n_dims!r}; expected 1 to {whole}, the length of a vector.")
        return None if n_dims == whole else n_dims

    def tokenize(self, texts: Sequence[str], max_tokens: int | None = None) -> list[list[int]]:
        """Ids with the tokenizer's special tokens, which survive the cut to `max_tokens`."""
        limit = self.max_tokens if max_tokens is None else min(max_tokens, self.max_tokens)
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
