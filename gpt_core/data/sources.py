"""Sources of documents: files of text, JSON lines, CSV and Parquet, and data sets on the Hugging Face hub."""

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from gpt_core.common.errors import InputError
from gpt_core.common.extras import extra
from gpt_core.common.jsonl import JSONL
from gpt_core.common.list_files import has_ending, list_files
from gpt_core.data.row_files import no_column, read_csv, read_jsonl, read_parquet, text_of
from gpt_core.data.text_pieces import cut_pieces, cut_text, scan_utf8

TEXT_SUFFIXES = (".txt", ".md", ".markdown")
SUFFIXES = (*TEXT_SUFFIXES, *JSONL, ".csv", ".parquet")
HUB_ROWS_PER_POSITION = 64  # rows of a hub data set between two positions at which reading can resume
SHAKESPEARE = Path(__file__).with_name("tiny_shakespeare.txt")

Position = dict[str, Any]  # where reading resumes, as JSON
OnBadRow = Literal["stop", "skip"]  # what to do with a row that cannot be used


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


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of one document; the following pieces belong to the same document until a piece `ends` it.

    Attributes:
        text: at most `text_pieces.PIECE_CHARACTERS` characters; empty for an empty document.
        split: "train" or "val".
        ends: whether the document ends with this piece.
        harmless: whether the cut at this piece's end leaves the token ids unchanged.
        done: amount of the source read so far, in the source's unit.
        position: where reading resumes after this piece; None if it cannot resume here.
        fault: of a row that is skipped: why it cannot be used; then `text` is empty.
    """

    text: str
    split: str
    ends: bool
    harmless: bool
    done: int
    position: Position | None
    fault: str = ""


class Source(Protocol):
    """Documents to read.

    A row that cannot be used raises an InputError, or is skipped: then its piece tells the `fault`.

    Attributes:
        identity: what must be unchanged for reading to resume; JSON.
        total: the size in `unit`; None if unknown.
        unit: "B" or "doc".
    """

    identity: dict[str, Any]
    total: int | None
    unit: str

    def read(self, position: Position | None = None, val_fraction: float = 0) -> Iterator[Piece]:
        """The documents in pieces, from `position` on.

        The hash of a document's text chooses its split; only a single text file is divided into both splits.

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
        self.sizes = [stat.st_size for stat in stats]
        self.total: int | None = sum(self.sizes)
        self.identity = {
            "files": [
                [str(path.resolve()), stat.st_size, stat.st_mtime_ns]
                for path, stat in zip(self.paths, stats, strict=True)
            ],
            "column": column,
        }

    def read(self, position: Position | None = None, val_fraction: float = 0) -> Iterator[Piece]:
        begin = position or {"file": 0}
        for number in range(begin["file"], len(self.paths)):
            read = self._text if has_ending(self.paths[number], TEXT_SUFFIXES) else self._rows
            yield from read(number, begin if number == begin["file"] else {}, val_fraction)

    def _text(self, number: int, begin: Position, val_fraction: float) -> Iterator[Piece]:
        path, before = self.paths[number], sum(self.sizes[:number])
        n, digest = scan_utf8(path)
        place, byte = begin.get("character", 0), begin.get("byte", 0)
        if len(self.paths) == 1 and val_fraction:
            documents = {"train": int(n * (1 - val_fraction)), "val": n}
        else:
            documents = {_split(digest, val_fraction): n}
        if n == 0:
            yield Piece("", "train", True, True, before, {"file": number + 1})
        with open(path, "rb") as raw:
            raw.seek(byte)
            file = io.TextIOWrapper(raw, "utf-8", newline="")  # keep line ends
            for split, end in documents.items():
                for text, harmless in cut_pieces(file.read, max(end - place, 0)):
                    place += len(text)
                    byte += len(text.encode())
                    after = {"file": number, "character": place, "byte": byte}
                    yield Piece(text, split, place == end, harmless, before + byte, after)

    def _rows(self, number: int, begin: Position, val_fraction: float) -> Iterator[Piece]:
        path, before = self.paths[number], sum(self.sizes[:number])
        row = begin.get("row", 0)
        read = {".parquet": read_parquet, ".csv": read_csv}.get(path.suffix.lower(), read_jsonl)
        rows = read(path, self.column, row)
        for place, text, done in rows:
            row += 1
            after = {"file": number, "row": row}
            yield from _pieces(place, text, self.on_bad_row, val_fraction, before + done, after)


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
        try:
            self._stream = builder.as_streaming_dataset(split)
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(unreadable(name, error)) from error
        features = self._stream.features
        if features is not None and column not in features:
            raise InputError(no_column(name, column, list(features)))
        data = builder.config.data_files or {}
        self.identity = {
            "dataset": [name, builder.config.name, split],
            "files": {str(key): [list(files), files.origin_metadata] for key, files in data.items()},
            "column": column,
        }

    def read(self, position: Position | None = None, val_fraction: float = 0) -> Iterator[Piece]:
        row = 0
        if position is not None:
            self._stream.load_state_dict(position["state"])
            row = position["row"]
        rows = iter(self._stream)
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
                    after = {"row": row, "state": self._stream.state_dict()}
                yield from _pieces(place, text, self.on_bad_row, val_fraction, row, after)
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


def _pieces(
    place: str,
    text: str | InputError,
    on_bad_row: OnBadRow,
    val_fraction: float,
    done: int,
    after: Position | None,
) -> Iterator[Piece]:
    """The pieces of a row's text; `after` is the position after the row."""
    digest = _digest(place, text) if isinstance(text, str) else text
    if isinstance(digest, InputError):
        if on_bad_row == "stop":
            raise InputError(f"{digest} Mend the row, or skip such rows with --on_bad_row skip.")
        yield Piece("", "train", True, True, done, after, str(digest))
        return
    assert isinstance(text, str)
    split, left = _split(digest, val_fraction), len(text)
    for piece, harmless in cut_text(text):
        left -= len(piece)
        yield Piece(piece, split, left == 0, harmless, done, after if left == 0 else None)


def _digest(place: str, text: str) -> str | InputError:
    """The sha256 of the text in hex; the InputError of a text that UTF-8 cannot encode."""
    digest = hashlib.sha256()
    try:
        for start in range(0, len(text), 2**20):  # in parts, to bound memory for long texts
            digest.update(text[start : start + 2**20].encode())
    except UnicodeEncodeError as error:
        half = f"U+{ord(error.object[error.start]):04X}"
        return InputError(
            f"{place}: the text holds {half}, half of a surrogate pair; replace or remove it first."
        )
    return digest.hexdigest()


def _split(digest: str, val_fraction: float) -> str:
    return "val" if int(digest[:16], 16) / 2**64 < val_fraction else "train"
