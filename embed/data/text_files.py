"""Streaming reader of the texts to encode."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from embed.data.beir import find_part, is_beir, join_title
from gpt_core.common.errors import InputError
from gpt_core.common.jsonl import JSONL, read_rows
from gpt_core.common.list_files import has_ending


@dataclass(frozen=True)
class TextFile:
    """The texts of a file, each with its id; every iteration reads the file again.

    Attributes:
        path: `.txt`, one text per line, or `.jsonl` (`.gz`, `.xz`), one object per line.
        column: key of an object's text. For "text", the "title" is prepended (`join_title`). The id is under
            "_id" or "id"; without one, and in a `.txt`, it is the text's line number, from 0.
    """

    path: Path
    column: str = "text"

    @classmethod
    def find(cls, path: str | Path, column: str = "text", queries: bool = False) -> "TextFile":
        """The file `path`, or the corpus or queries file if `path` is a BEIR folder.

        Raises:
            InputError: for a missing path or an unknown file type.
        """
        path = Path(path)
        if path.is_dir() and is_beir(path):
            return cls(find_part(path, "queries" if queries else "corpus"), column)
        if not path.exists():
            raise InputError(f"{path} does not exist; expected a file of texts or a BEIR folder.")
        if not path.is_file() or not has_ending(path, (".txt", *JSONL)):
            kinds = ", ".join((".txt", *JSONL))
            raise InputError(f"{path} has an unknown file type; expected {kinds}, or a BEIR folder.")
        return cls(path, column)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Iterate over (id, text).

        Raises:
            InputError: for an invalid line, which the message names.
        """
        return self._lines() if has_ending(self.path, (".txt",)) else self._objects()

    def _lines(self) -> Iterator[tuple[str, str]]:
        # Binary mode: in text mode, carriage returns would end lines as well.
        with open(self.path, "rb") as file:
            for number, line in enumerate(file):
                try:
                    yield str(number), line.decode("utf-8" if number else "utf-8-sig").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    raise InputError(
                        f"{self.path}, line {number + 1}, is not UTF-8: {error.reason} at byte {error.start}."
                    ) from None

    def _objects(self) -> Iterator[tuple[str, str]]:
        for number, (place, row) in enumerate(read_rows(self.path)):
            name, text = row.get("_id", row.get("id", number)), row.get(self.column)
            title = (row.get("title") or "") if self.column == "text" else ""
            if not isinstance(text, str) or not isinstance(title, str):
                there = ", ".join(repr(key[:40]) for key in row) or "none"
                raise InputError(f'{place}: expected a string under "{self.column}"; its keys are {there}.')
            if not isinstance(name, str | int):
                raise InputError(
                    f"{place}: the id is a {type(name).__name__}; expected a string or a number."
                )
            yield str(name), join_title(title, text) if self.column == "text" else text
