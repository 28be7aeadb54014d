"""A small embedder: a random GPT with GPT-2's tokenizer."""

from collections.abc import Callable

import pytest
import torch

from embed import Encoder
from embed.network.config import EmbedderConfig
from gpt_core import GPT, GPTConfig, Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_pretrained("gpt2")


@pytest.fixture(scope="session")
def make_encoder(tokenizer: Tokenizer) -> Callable[..., Encoder]:
    """make(seed, name, **settings) → an encoder with random weights."""

    def make(seed: int = 0, name: str = "tiny", **settings: object) -> Encoder:
        torch.manual_seed(seed)
        config = GPTConfig(
            vocab_size=tokenizer.vocab_size,
            block_size=96,
            n_layer=1,
            n_head=2,
            n_kv_head=1,
            n_embd=16,
            n_inner=32,
        )
        return Encoder(GPT(config), tokenizer, EmbedderConfig(**settings), name=name)

    return make


@pytest.fixture
def encoder(make_encoder: Callable[..., Encoder]) -> Encoder:
    return make_encoder()
