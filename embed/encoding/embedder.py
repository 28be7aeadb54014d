"""What an index needs of an embedder, whatever computes its vectors."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from embed.data.vectors import Vectors, unit_length
from embed.network.config import EmbedderConfig
from gpt_core.common.errors import InputError
from gpt_core.tokenizer.tokenizer import Tokenizer

PromptName = Literal["query", "document"]


class Embedder(ABC):
    """Texts to unit vectors. Methods are named as in sentence-transformers; `load_embedder` makes one.

    Attributes:
        name: the embedder's name in messages; `load_embedder` can find it by this name.
        folder: absolute path of the folder that it was loaded from; None for one in memory or behind a URL.
        config: its prompts, and the corpus map and the fusion of an index of its vectors.
        tokenizer: measures passages; that of another embedder where its own is not known.
        max_tokens: longest input in tokens, prompt and special tokens included; longer texts are truncated.
        n_truncated: number of texts truncated since the embedder was created.
    """

    name: str
    folder: Path | None
    config: EmbedderConfig
    tokenizer: Tokenizer
    max_tokens: int
    n_truncated: int

    @property
    @abstractmethod
    def dimension(self) -> int:
        """Number of dimensions of a vector."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """What tells this embedder from others whose vectors differ; see `embed.encoding.fingerprint`."""

    @abstractmethod
    def encode(
        self,
        texts: str | Sequence[str],
        prompt_name: PromptName | None = None,
        prompt: str | None = None,
        *,
        truncate_dim: int | None = None,
    ) -> NDArray[Any]:
        """Unit vectors (n, dimension) float32 of texts, with the prompt called `prompt_name`, or with `prompt`.

        `truncate_dim` keeps the first n dimensions and normalises them; None: all.
        """

    def encode_query(self, texts: str | Sequence[str], **options: Any) -> NDArray[Any]:
        """`encode` with the prompt for queries."""
        return self.encode(texts, "query", **options)

    def encode_document(self, texts: str | Sequence[str], **options: Any) -> NDArray[Any]:
        """`encode` with the prompt for documents."""
        return self.encode(texts, "document", **options)

    def similarity(self, a: Vectors, b: Vectors) -> Vectors:
        """Cosines (n, m) float32 of vectors (n, d) and (m, d) of any length.

        Raises:
            InputError: for vectors of different dimensions.
        """
        first, second = (np.atleast_2d(np.asarray(side, dtype=np.float32)) for side in (a, b))
        if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
            raise InputError(
                f"The vectors have shapes {first.shape} and {second.shape}; expected (n, d) and (m, d)."
            )
        return unit_length(first) @ unit_length(second).T

    def prompt(self, name: PromptName) -> str:
        """The prompt called `name`, "query" or "document"; InputError for any other name."""
        prompts = {"query": self.config.query_prompt, "document": self.config.document_prompt}
        if name not in prompts:
            raise InputError(f"prompt_name is {name!r}; the available prompts are {' and '.join(prompts)}.")
        return prompts[name]

    def count_tokens(self, texts: Sequence[str], prompt: str = "") -> list[int]:
        """Number of tokens of each text including `prompt` and special tokens, before truncation to `max_tokens`."""
        n_special = len(self.tokenizer.encode("", add_special_tokens=True))
        return [
            n_special + len(ids) for ids in self.tokenizer.encode_batch([prompt + text for text in texts])
        ]

    def _prompted(
        self, texts: str | Sequence[str], prompt_name: PromptName | None, prompt: str | None = None
    ) -> list[str]:
        """Each text with the prompt prepended; InputError for a text that is not a string."""
        if isinstance(texts, str):
            texts = [texts]
        if not isinstance(texts, Iterable):
            raise InputError(f"texts is a {type(texts).__name__}; expected a string or a list of strings.")
        if prompt is None:
            prompt = self.prompt(prompt_name) if prompt_name else ""
        prompted = []
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(f"Text {i} is a {type(text).__name__}; expected a string.")
            prompted.append(prompt + text)
        return prompted
