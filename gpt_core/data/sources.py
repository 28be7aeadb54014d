"""Sources of documents: files of text, JSON lines, CSV and Parquet, and data sets on the Hugging Face hub."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from gpt_core.common.errors import InputError
from gpt_core.common.extras import extra
from gpt_core.common.jsonl import JSONL
from gpt_core.common.list_files import has_ending, list_files
from gpt_core.data.documents import (
    TRAIN_ONLY,
    OnBadRow,
    Piece,
    Position,
    Split,
    from_0_to_1,
    row_pieces,
)
from gpt_core.data.row_files import no_column, read_csv, read_jsonl, read_parquet, text_of
from gpt_core.data.text_pieces import cut_pieces, scan_utf8

TEXT_SUFFIXES = (".txt", ".md", ".markdown")
SUFFIXES = (*TEXT_SUFFIXES, *JSONL, ".csv", ".parquet")
HUB_ROWS_PER_POSITION = 64  # rows of a hub data set between two positions at which reading can resume
SHAKESPEARE = Path(__file__).with_name("tiny_shakespeare.txt")


@dataclass(frozen=True)
class NamedSet:
    """A data set with a short name.

    Attributes:
        files: local files; if empty, `hub` and `config` name the data set on the Hugging Face hub.
        tokenizer: the default tokenizer.
        val_fraction: the default share for validation.
    """

    files: tuple[Path, ...] = ()
    hub: str = ""
    config: str | None = None
    tokenizer: str = "gpt2"
    val_fraction: float = 0.1


SETS = {
    "shakespeare_char": NamedSet((SHAKESPEARE,), tokenizer="char"),
    "shakespeare": NamedSet((SHAKESPEARE,)),
    "openwebtext": NamedSet(hub="Skylion007/openwebtext", val_fraction=0.0005),  # nanoGPT's share
    "openwebtext-10k": NamedSet(hub="stas/openwebtext-10k", val_fraction=0.01),
    "fineweb-edu": NamedSet(hub="HuggingFaceFW/fineweb-edu", config="sample-10BT", val_fraction=0.0005),
}


class Source(Protocol):
    """Documents to read.

    A row that cannot be used raises an InputError, or is skipped: then its piece tells the `fault`.

    Attributes:
        identity: what must be unchanged for reading to resume; JSON.
        total: the size in `unit`; None if unknown.
        unit: "B" or "doc".
        single: whether the source is a single text file, one document.
    """

    identity: dict[str, Any]
    total: int | None
    unit: str
    single: bool

    def read(self, position: Position | None = None, split: Split = TRAIN_ONLY) -> Iterator[Piece]:
        """The documents in pieces, from `position` on, without a byte order mark at the start of a text.

        Raises:
            InputError: naming the file and the line or row that cannot be read.
        """


class Files:
    """Files with a suffix of `SUFFIXES`, and folders of such files. A text file, or a row of another, is one document.

    Args:
        paths: files and folders.
        column: key or column of the text in a row.
        on_bad_row: what to do with a row that cannot be used.

    Raises:
        InputError: for a path that is missing or has another suffix, or a folder without such files.
    """

    unit = "B"

    def __init__(
        self, paths: Sequence[str | Path], column: str = "text", on_bad_row: OnBadRow = "stop"
    ) -> None:
        self.listing = list_files(paths, SUFFIXES)
        self.paths, self.column = [path for path, _ in self.listing.files], column
        self.on_bad_row: OnBadRow = on_bad_row
        stats = [path.stat() for path in self.paths]
        self.single = len(self.paths) == 1 and has_ending(self.paths[0], TEXT_SUFFIXES)
        self.sizes = [stat.st_size for stat in stats]
        self.total: int | None = sum(self.sizes)
        self.identity = {
            "files": [
                [str(path.resolve()), stat.st_size, stat.st_mtime_ns]
                for path, stat in zip(self.paths, stats, strict=True)
            ],
            "column": column,
        }

    def read(self, position: Position | None = None, split: Split = TRAIN_ONLY) -> Iterator[Piece]:
        begin = position or {"file": 0}
        for number in range(begin["file"], len(self.paths)):
            read = self._text if has_ending(self.paths[number], TEXT_SUFFIXES) else self._rows
            yield from read(number, begin if number == begin["file"] else {}, split)

    def _text(self, number: int, begin: Position, split: Split) -> Iterator[Piece]:
        path, before = self.paths[number], sum(self.sizes[:number])
        n, digest, mark = scan_utf8(path)
        place, byte = begin.get("character", 0), begin.get("byte", mark)
        hash = from_0_to_1(digest)
        if n == 0:
            yield Piece("", "train", True, True, before, {"file": number + 1}, hash)
        with open(path, "rb") as raw:
            raw.seek(byte)
            file = io.TextIOWrapper(raw, "utf-8", newline="")  # keep line ends
            for name, end in split.parts(n, hash).items():
                for text, harmless in cut_pieces(file.read, max(end - place, 0)):
                    place += len(text)
                    byte += len(text.encode())
                    after = {"file": number, "character": place, "byte": byte}
                    yield Piece(text, name, place == end, harmless, before + byte, after, hash)

    def _rows(self, number: int, begin: Position, split: Split) -> Iterator[Piece]:
        path, before = self.paths[number], sum(self.sizes[:number])
        row = begin.get("row", 0)
        read = {".parquet": read_parquet, ".csv": read_csv}.get(path.suffix.lower(), read_jsonl)
        rows = read(path, self.column, row)
        for place, text, done in rows:
            row += 1
            after = {"file": number, "row": row}
            yield from row_pieces(place, text, self.on_bad_row, split, before + done, after)


class HubSet:
    """One split of a data set that the library `datasets` can stream: a name on the Hugging Face hub, or a folder.

    Args:
        name: such as "roneneldan/TinyStories".
        config: configuration of the data set, if it has several.
        split: split to read.
        column: column of the text.
        on_bad_row: what to do with a row that cannot be used.

    Raises:
        InputError: if there is no such data set, configuration, split or column, or no network.
    """

    unit = "doc"
    total: int | None = None
    single = False

    def __init__(
        self,
        name: str,
        config: str | None = None,
        split: str = "train",
        column: str = "text",
        on_bad_row: OnBadRow = "stop",
    ) -> None:
        self.name, self.column = name, column
        self.on_bad_row: OnBadRow = on_bad_row
        builder = open_builder(name, config)
        self._open = partial(builder.as_streaming_dataset, split)
        try:
            features = self._open().features
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(unreadable(name, error)) from error
        if features is not None and column not in features:
            raise InputError(no_column(name, column, list(features)))
        data = builder.config.data_files or {}
        self.identity = {
            "dataset": [name, builder.config.name, split],
            "files": {str(key): [list(files), files.origin_metadata] for key, files in data.items()},
            "column": column,
        }

    def read(self, position: Position | None = None, split: Split = TRAIN_ONLY) -> Iterator[Piece]:
        row, stream = 0, self._open()
        if position is not None:
            stream.load_state_dict(position["state"])
            row = position["row"]
        rows = iter(stream)
        try:
            while True:
                try:
                    values = next(rows, None)
                except Exception as error:  # of the library, its file systems or the network
                    raise OSError(
                        f"reading {self.name} failed after row {row}: {str(error).partition(chr(10))[0]}"
                    ) from error
                if values is None:
                    return
                row += 1
                place = f"{self.name}, row {row}"
                text = text_of(place, values, self.column)
                after = None
                if row % HUB_ROWS_PER_POSITION == 0:
                    after = {"row": row, "state": stream.state_dict()}
                yield from row_pieces(place, text, self.on_bad_row, split, row, after)
        finally:
            rows.close()  # else a Parquet reader prints an error when the interpreter exits


def open_builder(name: str, config: str | None) -> Any:
    """The builder that the library `datasets` has for a name on the Hugging Face hub, or for a folder.

    Raises:
        InputError: if there is no such data set or configuration, or no network.
    """
    with extra("train"):
        import datasets
        from huggingface_hub.utils import logging
    datasets.disable_progress_bars()
    logging.set_verbosity_error()  # hides messages about retries; the final error is raised below
    try:
        try:
            return datasets.load_dataset_builder(name, config)
        except RuntimeError as error:
            if "scripts are no longer supported" not in str(error):
                raise
            print(
                f"{name} needs a loading script; reading the hub's Parquet copy instead, which ends after 5 GB."
            )
            return datasets.load_dataset_builder(name, config, revision="refs/convert/parquet")
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(unreadable(name, error)) from error


def unreadable(name: str, error: Exception) -> str:
    """Error message for a data set that the library `datasets` cannot load."""
    reason = str(error).partition("\n")[0].rstrip(".")
    return f"The data set {name} cannot be read: {reason}. Check its name, configuration and split, and the network."


def open_source(
    input: list[str] | None,
    dataset: str | None,
    config: str | None,
    split: str,
    column: str,
    on_bad_row: OnBadRow,
) -> Source:
    """The source that command-line arguments name: files (`input`) or a data set (`dataset`).

    Raises:
        InputError: as `Files` and `HubSet`, or if not exactly one of `input` and `dataset` is given.
    """
    if bool(input) == bool(dataset):
        raise InputError("Give exactly one of --input and --dataset.")
    known = SETS.get(dataset or "", NamedSet(hub=dataset or ""))
    if not input and not known.files:
        return HubSet(known.hub, config or known.config, split, column, on_bad_row)
    files = Files(input or known.files, column, on_bad_row)
    files.listing.report()
    return files
