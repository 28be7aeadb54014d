"""Settings that are fixed when an index is created."""

import json
import os
import uuid
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from embed.encoding.embedder import Embedder
from embed.encoding.fingerprint import same
from embed.network.config import Fusion, MapKind
from gpt_core.common.errors import InputError
from index.reading.passages import check_lengths


@dataclass(frozen=True)
class Settings:
    """An index's settings.

    Attributes:
        embedder, fingerprint: the embedder's name, and its digest, which is checked when the index is opened; empty for
            an index of precomputed vectors.
        embedder_folder: absolute path of the folder that the embedder was loaded from; of a training run, which may go
            on, that of its checkpoint; empty for an embedder that was made in memory.
        embedder_beside: the same relative to the index's folder, for an index that moves together with its embedder.
        dimension: length of a vector.
        dtype: number format of the stored vectors.
        max_tokens, overlap: arguments of `passages.split`.
        passages_per_document: maximum number of passages indexed per document; None for all.
        rows_per_document: rows of a table's file that are one document.
        corpus_map, map_components: kind and size of the corpus map that is fitted on the vectors.
        fusion: how hybrid search combines dense and lexical scores.
        identity: random id of this index, by which snapshots of other indexes are recognised.

    Raises:
        InputError: for invalid values.
    """

    embedder: str
    fingerprint: str
    dimension: int
    dtype: Literal["float16", "float32"] = "float32"
    max_tokens: int = 256
    overlap: int = 32
    passages_per_document: int | None = None
    rows_per_document: int = 1
    corpus_map: MapKind = "none"
    map_components: int | None = None
    fusion: Fusion = field(default_factory=Fusion)
    embedder_folder: str = ""
    embedder_beside: str = ""
    identity: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        check_lengths(self.max_tokens, self.overlap)
        if self.passages_per_document is not None and self.passages_per_document < 1:
            raise InputError(f"passages_per_document is {self.passages_per_document}; expected at least 1.")
        if self.rows_per_document < 1:
            raise InputError(f"rows_per_document is {self.rows_per_document}; expected at least 1.")
        if self.dimension < 1:
            raise InputError(
                f"dimension is {self.dimension}; expected at least 1, the length of the vectors."
            )

    @classmethod
    def of(
        cls,
        encoder: Embedder | None,
        max_tokens: int | None,
        overlap: int | None,
        passages_per_document: int | None,
        rows_per_document: int | None,
        fusion: Fusion | None,
        dimension: int | None,
        folder: Path,
    ) -> "Settings":
        """The settings of a new index in `folder`; see `Index.create`."""
        of_texts = {
            "max_tokens": max_tokens,
            "overlap": overlap,
            "passages_per_document": passages_per_document,
            "rows_per_document": rows_per_document,
        }
        for name, value in ({"dimension": dimension} if encoder else of_texts).items():
            if value is not None:
                kind = "of precomputed vectors" if encoder else "with an encoder"
                raise InputError(f"{name} is {value}; it is for an index {kind}, leave it out.")
        if not encoder:
            return cls("", "", dimension or 0, fusion=fusion or Fusion())
        max_tokens = 256 if max_tokens is None else max_tokens
        overlap = max_tokens // 8 if overlap is None else overlap
        blank = cls(
            "",
            "",
            encoder.dimension,
            max_tokens=max_tokens,
            overlap=overlap,
            passages_per_document=passages_per_document,
            rows_per_document=1 if rows_per_document is None else rows_per_document,
        )
        settings = blank.with_encoder(encoder, folder)
        return replace(settings, fusion=fusion) if fusion else settings

    def with_encoder(self, encoder: Embedder, folder: Path) -> "Settings":
        """These settings for an index in `folder` with the vectors of `encoder`, under another identity.

        Raises:
            InputError: if passages are longer than the embedder's context.
        """
        if self.max_tokens > encoder.max_tokens:
            raise InputError(
                f"max_tokens is {self.max_tokens}; the embedder {encoder.name} takes at most {encoder.max_tokens}."
            )
        return replace(
            self,
            embedder=encoder.name,
            fingerprint=encoder.fingerprint,
            dimension=encoder.dimension,
            # Embedders that need a corpus map give nearly parallel vectors. float16 would round their small
            # differences, and the map amplifies the rounding errors.
            dtype="float16" if encoder.config.corpus_map == "none" else "float32",
            corpus_map=encoder.config.corpus_map,
            map_components=encoder.config.map_components,
            fusion=encoder.config.fusion,
            embedder_folder=str(encoder.folder or ""),
            embedder_beside=os.path.relpath(encoder.folder, folder.resolve()) if encoder.folder else "",
            identity=uuid.uuid4().hex,
        )

    @classmethod
    def from_json(cls, text: str) -> "Settings":
        """Parse the output of `to_json`."""
        values = json.loads(text)
        return cls(**{**values, "fusion": Fusion(**values["fusion"])})

    @property
    def embedder_words(self) -> str:
        """The embedder's name and fingerprint, for messages."""
        name = self.embedder or "an embedder without a name"
        return f"{name} ({self.fingerprint[:12]})" if self.fingerprint else "precomputed vectors"

    def check_encoder(self, folder: Path, encoder: Embedder) -> None:
        """Check that the index in `folder`, whose settings these are, was built with `encoder`.

        Raises:
            InputError: if it was not.
        """
        if not same(encoder.fingerprint, self.fingerprint):
            if encoder.fingerprint.partition(":")[0] == self.fingerprint.partition(":")[0]:
                raise InputError(
                    f"{folder} was built with {encoder.name}, which now gives other vectors; change the embedder with "
                    "manage_index.py reembed."
                )
            raise InputError(
                f"{folder} was built with {self.embedder_words}, not with {encoder.name} "
                f"({encoder.fingerprint[:12]}); open it with the embedder it was built with, or change its embedder "
                "with manage_index.py reembed."
            )

    def find_embedder(self, folder: Path) -> str:
        """The folder of the embedder of the index in `folder`, if it is where it was or beside the index as it was.

        Else the embedder's name.
        """
        places = [Path(self.embedder_folder), folder / self.embedder_beside] if self.embedder_folder else []
        return next((str(place) for place in places if place.is_dir()), self.embedder)

    def to_json(self) -> str:
        """The settings as JSON."""
        return json.dumps(asdict(self))
