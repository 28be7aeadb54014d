"""A small embedder: a random GPT with GPT-2's tokenizer."""

from collections.abc import Callable
from pathlib import Path

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


@pytest.fixture
def load_always(monkeypatch: pytest.MonkeyPatch) -> Callable[[Encoder], None]:
    """load_always(encoder): whatever embedder is named, `encoder` is what is loaded."""

    def always(encoder: Encoder) -> None:
        for place in ("index.building.target", "index.index"):
            monkeypatch.setattr(f"{place}.load_embedder", lambda name: encoder)

    return always


@pytest.fixture(scope="session")
def embedder(tmp_path_factory: pytest.TempPathFactory, make_encoder: Callable[..., Encoder]) -> Path:
    """A model folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    encoder = make_encoder(corpus_map="standardise")
    encoder.model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(gpt2_tokenizer_json())
    (folder / "embedder.json").write_text(encoder.config.to_json())
    return folder


def gpt2_tokenizer_json() -> str:
    from tokenizers import ByteLevelBPETokenizer

    from gpt_core.tokenizer.builtin import ASSETS

    return ByteLevelBPETokenizer(str(ASSETS / "encoder.json"), str(ASSETS / "vocab.bpe")).to_str()
