"""The index that a build writes: one that exists, or one that is made when the input has been checked."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from embed.encoding.embedder import Embedder
from embed.encoding.load import load_embedder
from embed.network.config import Fusion
from gpt_core.common.errors import InputError
from gpt_core.hub.locate import DEFAULT_EMBEDDER
from index.building.options import BuildOptions
from index.dense.ann import DEFAULT, check_wanted
from index.index import Index
from index.store.settings import Settings
from index.store.store import FILE, Store


@dataclass(frozen=True)
class Target:
    """The index that a build writes.

    Attributes:
        options: the options of the build.
        settings: the index's settings, or those that it is to have.
        encoder: the embedder of a new index; None: the index exists, and its embedder is loaded when it is needed.
    """

    options: BuildOptions
    settings: Settings
    encoder: Embedder | None

    @classmethod
    def of(cls, options: BuildOptions) -> "Target":
        """The target of a build; nothing is written yet.

        Raises:
            InputError: for options that the index cannot have, or an embedder that cannot be loaded.
        """
        folder = Path(options.index)
        if (folder / FILE).exists():
            with closing(Store(folder, update=not options.dry_run)) as store:
                _check_settings(options, store.settings)
                _check_faiss(options, store.settings.dimension)
                return cls(options, store.settings, None)
        if options.delete:
            raise InputError(f"{folder} has no index, so --delete has nothing to delete.")
        encoder = load_embedder(options.embedder or DEFAULT_EMBEDDER)
        settings = Settings.of(
            encoder, **options.of_texts, fusion=_fusion(options, encoder), dimension=None, folder=folder
        )
        _check_faiss(options, settings.dimension)
        return cls(options, settings, encoder)

    @property
    def folder(self) -> Path:
        """The index's folder."""
        return Path(self.options.index)

    @property
    def is_new(self) -> bool:
        """Whether the index is still to be made."""
        return self.encoder is not None

    @contextmanager
    def opened(self) -> Iterator[Index]:
        """Open the index, or create it; a new index is removed on an error if it has no documents yet."""
        if self.encoder is None:
            with Index.open(self.folder, self.options.embedder) as index:
                yield index
            return
        try:
            index = Index.create(
                self.folder,
                self.encoder,
                **self.options.of_texts,
                fusion=_fusion(self.options, self.encoder),
            )
        except InputError:
            if not (self.folder / FILE).exists():
                raise
            raise InputError(
                f"Another process has created {self.folder} in the meantime; wait until it has ended, then run this "
                "again."
            ) from None
        with index:
            try:
                yield index
            except BaseException:
                if (self.folder / FILE).exists() and not index.document_ids():
                    index.close()
                    shutil.rmtree(self.folder)
                raise


def _fusion(options: BuildOptions, encoder: Embedder) -> Fusion | None:
    """The fusion that is asked for; None for the embedder's own."""
    return Fusion(options.fusion) if options.fusion and options.fusion != encoder.config.fusion.kind else None


def _check_settings(options: BuildOptions, settings: Settings) -> None:
    """Raise InputError for an option that differs from what was fixed when the index was created."""
    if options.embedder is None and settings.embedder not in ("", DEFAULT_EMBEDDER):
        print(
            f"{options.index} keeps its embedder {settings.embedder}; a new index would get {DEFAULT_EMBEDDER}",
            file=sys.stderr,
        )
    given = [(name, value, getattr(settings, name)) for name, value in options.of_texts.items()]
    for name, value, own in [*given, ("fusion", options.fusion, settings.fusion.kind)]:
        if value not in (None, own):
            raise InputError(
                f"{options.index} was created with {name} {own}, not {value}; leave out --{name}."
            )


def _check_faiss(options: BuildOptions, dimension: int) -> None:
    """Raise InputError unless vectors of this dimension can be searched as the options say."""
    check_wanted(DEFAULT.changed(options.faiss, options.recall), dimension)
