"""Where documents come from: files of text, JSON lines, CSV and Parquet, and sets on the Hugging Face hub."""

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gpt_core.common.errors import InputError
from gpt_core.common.extras import extra
from gpt_core.common.jsonl import JSONL
from gpt_core.common.list_files import list_files
from gpt_core.data.row_files import as_string, no_column, read_csv, read_jsonl, read_parquet
from gpt_core.data.text_pieces import cut_pieces, cut_text, survey

TEXT = (".txt", ".md")
KINDS = (*TEXT, *JSONL, ".csv", ".parquet")
HUB_POSITIONS = 64  # rows of a hub's set between two at which reading can go on
SHAKESPEARE = Path(__file__).with_name("tiny_shakespeare.txt")

Position = dict[str, Any]  # where reading goes on, as JSON


@dataclass(frozen=True)
class NamedSet:
    """What a short name stands for.

    Attributes:
        files: on this machine; if there are none, `hub` and `config` say where on the Hugging Face hub it lies.
        tokenizer: the one to take if none is asked for.
        val_fraction: the share for validation if none is asked for.
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
    """Some text of one document; the next pieces belong to the same one until one `ends` it.

    Attributes:
        text: at most `pieces.PIECE` characters; empty for an empty document.
        split: "train" or "val".
        ends: whether the document ends here.
        harmless: whether a tokenizer cuts at this piece's end anyway.
        done: how much of the source has been read, in the source's unit.
        position: where reading goes on after this piece; None where it cannot begin.
    """

    text: str
    split: str
    ends: bool
    harmless: bool
    done: int
    position: Position | None


class Source(Protocol):
    """Documents to read.

    Attributes:
        identity: what must be the same for reading to go on; JSON.
        total: how much there is, in `unit`; None if that is not known.
        unit: "B" or "doc".
    """

    identity: dict[str, Any]
    total: int | None
    unit: str

    def read(self, position: Position | None = None, val_fraction: float = 0) -> Iterator[Piece]:
        """The documents in pieces, from `position` on.

        A document goes whole to one split, chosen by the hash of its text; only a single text file is cut in two.

        Raises:
            InputError: naming the file and the line or row that cannot be read.
        """


class Files:
    """Files of the kinds `KINDS`, and folders of such. A text file is one document; of the others each row is one.

    Args:
        paths: of files and folders.
        column: where a row has its text: a key, or a column's name.

    Raises:
        InputError: for a path that is missing or of no known kind, or a folder in which there is nothing to read.
    """

    unit = "B"

    def __init__(self, paths: Sequence[str | Path], column: str = "text") -> None:
        listed, self.skipped = list_files(paths, KINDS)
        self.paths, self.column = [path for path, _ in listed], column
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
            read = self._text if self.paths[number].name.endswith(TEXT) else self._rows
            yield from read(number, begin if number == begin["file"] else {}, val_fraction)

    def _text(self, number: int, begin: Position, val_fraction: float) -> Iterator[Piece]:
        path, before = self.paths[number], sum(self.sizes[:number])
        n, digest = survey(path)
        place, byte = begin.get("character", 0), begin.get("byte", 0)
        if len(self.paths) == 1 and val_fraction:
            documents = {"train": int(n * (1 - val_fraction)), "val": n}
        else:
            documents = {_split(digest, val_fraction): n}
        if n == 0:
            yield Piece("", "train", True, True, before, {"file": number + 1})
        with open(path, "rb") as raw:
            raw.seek(byte)
            file = io.TextIOWrapper(raw, "utf-8", newline="")  # line ends stay as they are
            for split, end in documents.items():
                for text, harmless in cut_pieces(file.read, max(end - place, 0)):
                    place += len(text)
                    byte += len(text.encode())
                    after = {"file": number, "character": place, "byte": byte}
                    yield Piece(text, split, place == end, harmless, before + byte, after)

    def _rows(self, number: int, begin: Position, val_fraction: float) -> Iterator[Piece]:
        path, before = self.paths[number], sum(self.sizes[:number])
        row = begin.get("row", 0)
        if path.suffix == ".parquet":
            rows = read_parquet(path, self.column, row)
        else:
            rows = (read_csv if path.suffix == ".csv" else read_jsonl)(path, self.column, row)
        for place, text, done in rows:
            row += 1
            yield from _pieces(place, text, val_fraction, before + done, {"file": number, "row": row})


class HubSet:
    """One split of a set that the library `datasets` can stream: its name on the Hugging Face hub, or a folder.

    Args:
        name: such as "roneneldan/TinyStories".
        config: the set's configuration, if it has several.
        split: which of its splits to read.
        column: where a row has its text.

    Raises:
        InputError: if there is no such set, configuration, split or column, or no network.
    """

    unit = "doc"
    total: int | None = None

    def __init__(
        self, name: str, config: str | None = None, split: str = "train", column: str = "text"
    ) -> None:
        self.name, self.column = name, column
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
                except Exception as error:  # the library's own, its file systems' or the network's
                    raise OSError(
                        f"{self.name} broke off after row {row}: {str(error).partition(chr(10))[0]}"
                    ) from error
                if values is None:
                    return
                row += 1
                place = f"{self.name}, row {row}"
                if self.column not in values:
                    raise InputError(no_column(place, self.column, list(values)))
                after = None
                if row % HUB_POSITIONS == 0:
                    after = {"row": row, "state": self._stream.state_dict()}
                yield from _pieces(place, as_string(place, values[self.column]), val_fraction, row, after)
        finally:
            rows.close()  # a reader of Parquet that the interpreter's end closes complains


def open_builder(name: str, config: str | None) -> Any:
    """The builder of a set that the library `datasets` knows: by its name on the Hugging Face hub, or a folder.

    Raises:
        InputError: if there is no such set or configuration, or no network.
    """
    with extra("train"):
        import datasets
        from huggingface_hub.utils import logging
    datasets.disable_progress_bars()
    logging.set_verbosity_error()  # its retries; what they come to is said below
    try:
        try:
            return datasets.load_dataset_builder(name, config)
        except RuntimeError as error:
            if "scripts are no longer supported" not in str(error):
                raise
            print(
                f"{name} comes as a program; reading the hub's own Parquet copy of it, which for a set above"
            )
            print("5 GB is only its first 5 GB.")
            return datasets.load_dataset_builder(name, config, revision="refs/convert/parquet")
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(unreadable(name, error)) from error


def unreadable(name: str, error: Exception) -> str:
    """What to say of a set that the library `datasets` does not give."""
    reason = str(error).partition("\n")[0].rstrip(".")
    return f"The data set {name} cannot be read: {reason}. Check its name, configuration and split, and the network."


def open_source(
    input: list[str] | None, dataset: str | None, config: str | None, split: str, column: str
) -> Source:
    """The source that a command line names: files by `input`, or else a set by `dataset`.

    Raises:
        InputError: as `Files` and `HubSet`, or if not exactly one of the two is given.
    """
    if bool(input) == bool(dataset):
        raise InputError("Give either --input or --dataset, so that it is clear what to read.")
    known = SETS.get(dataset or "", NamedSet(hub=dataset or ""))
    if not input and not known.files:
        return HubSet(known.hub, config or known.config, split, column)
    files = Files(input or known.files, column)
    if files.skipped:
        names = ", ".join(path.name for path in files.skipped[:5])
        more = f" and {len(files.skipped) - 5} more" if len(files.skipped) > 5 else ""
        print(f"left out, being of other kinds: {names}{more}")
    return files


def _pieces(place: str, text: str, val_fraction: float, done: int, after: Position | None) -> Iterator[Piece]:
    digest = hashlib.sha256()
    try:
        for start in range(0, len(text), 2**20):  # not at once: it may be long
            digest.update(text[start : start + 2**20].encode())
    except UnicodeEncodeError as error:
        half = f"U+{ord(error.object[error.start]):04X}"
        raise InputError(
            f"{place}: the text holds {half}, half of a surrogate pair; mend it first."
        ) from None
    split, left = _split(digest.hexdigest(), val_fraction), len(text)
    for piece, harmless in cut_text(text):
        left -= len(piece)
        yield Piece(piece, split, left == 0, harmless, done, after if left == 0 else None)


def _split(digest: str, val_fraction: float) -> str:
    return "val" if int(digest[:16], 16) / 2**64 < val_fraction else "train"
