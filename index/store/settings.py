"""What is fixed when an index is made."""

import json
import uuid
from dataclasses import asdict, dataclass, field
from typing import Literal

from embed.encoding.encoder import Encoder
from embed.network.config import Fusion, MapKind
from gpt_core.common.errors import InputError
from index.reading.passages import check_lengths


@dataclass(frozen=True)
class Settings:
    """An index's settings.

    Attributes:
        embedder, fingerprint: the embedder's name and the digest that opening checks; empty for ready vectors only.
        dimension: length of a vector.
        dtype: of the stored vectors.
        max_tokens, overlap: how documents are split, see `passages.split`.
        passages_per_document: how many passages of each document are kept; None for all.
        corpus_map, map_components: the kind of map that is fitted on the vectors.
        fusion: how hybrid search combines its legs.
        identity: of this very index; a snapshot of another one is told by it.

    Raises:
        InputError: for values that cannot be.
    """

    embedder: str
    fingerprint: str
    dimension: int
    dtype: Literal["float16", "float32"] = "float32"
    max_tokens: int = 256
    overlap: int = 32
    passages_per_document: int | None = None
    corpus_map: MapKind = "none"
    map_components: int | None = None
    fusion: Fusion = field(default_factory=Fusion)
    identity: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        check_lengths(self.max_tokens, self.overlap)
        if self.passages_per_document is not None and self.passages_per_document < 1:
            raise InputError(f"passages_per_document is {self.passages_per_document}; expected at least 1.")
        if self.dimension < 1:
            raise InputError(
                f"dimension is {self.dimension}; expected the length of the vectors, at least 1."
            )

    @classmethod
    def of(
        cls,
        encoder: Encoder,
        max_tokens: int,
        overlap: int,
        passages_per_document: int | None,
        fusion: Fusion | None,
    ) -> "Settings":
        """Settings for an index of `encoder`'s vectors; `fusion` None for the embedder's own choice."""
        if max_tokens > encoder.max_tokens:
            raise InputError(
                f"max_tokens is {max_tokens}; the embedder {encoder.name} takes {encoder.max_tokens}."
            )
        return cls(
            embedder=encoder.name,
            fingerprint=encoder.fingerprint,
            dimension=encoder.dimension,
            # Where a corpus map is needed, vectors share a long mean and differ by little: float16 would round that
            # little, which the map then blows up.
            dtype="float16" if encoder.config.corpus_map == "none" else "float32",
            max_tokens=max_tokens,
            overlap=overlap,
            passages_per_document=passages_per_document,
            corpus_map=encoder.config.corpus_map,
            map_components=encoder.config.map_components,
            fusion=fusion or encoder.config.fusion,
        )

    @classmethod
    def from_json(cls, text: str) -> "Settings":
        """Read what `to_json` wrote."""
        values = json.loads(text)
        return cls(**{**values, "fusion": Fusion(**values["fusion"])})

    @property
    def embedder_words(self) -> str:
        """The embedder, as messages speak of it."""
        return f"{self.embedder} ({self.fingerprint[:12]})" if self.fingerprint else "ready vectors"

    def to_json(self) -> str:
        """The settings as JSON."""
        return json.dumps(asdict(self))
