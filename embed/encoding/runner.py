"""Where the blocks of texts of a long run are encoded: in this process, or, as the modules beside, in several."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from embed.data.vectors import Vectors
from embed.encoding.embedder import Embedder
from gpt_core.common.errors import InputError

Texts = Sequence[str]


class Encoded(NamedTuple):
    """The vectors (n, dimension) float32 of a block of texts, and the number of texts that were truncated."""

    vectors: Vectors
    n_truncated: int


class Runner(Protocol):
    """Encodes blocks of documents' texts; a block has the same vectors wherever it is encoded."""

    @property
    def at_once(self) -> int:
        """Number of blocks that occupy all workers."""

    def encode(self, encoder: Embedder, blocks: Sequence[Texts]) -> list[Encoded]:
        """The vectors of each block, in order. The first encoder given is used for all calls."""


class Here:
    """Encodes in this process."""

    at_once = 1

    def encode(self, encoder: Embedder, blocks: Sequence[Texts]) -> list[Encoded]:
        """The vectors of each block, in order."""
        return [encode_block(encoder, block) for block in blocks]


def encode_block(encoder: Embedder, texts: Texts) -> Encoded:
    """Encode one block."""
    before = encoder.n_truncated
    return Encoded(encoder.encode_document(texts), encoder.n_truncated - before)


def check_can_be_sent(encoder: Embedder) -> None:
    """Raise InputError for an embedder behind a URL: it has one server, and a key that stays in this process."""
    if encoder.folder is None:
        raise InputError(
            f"The embedder {encoder.name or 'in memory'} has no folder, and only a model in a folder can be sent to "
            "other processes; leave out --runner and torchrun."
        )
