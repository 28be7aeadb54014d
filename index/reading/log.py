"""What a reading of files has to report."""

import os
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from gpt_core.common.terminal import printable
from index.reading.formats.encoding import UTF8

MOST_NAMED = 5  # files that a message names; further ones are only counted


@dataclass
class ReadingLog:
    """What a reading of files has to report.

    Attributes:
        read: number of files that were read, by the ending of their names.
        unread: files in folders that could not be read, each with the reason, by source.
        unread_kinds: their number, by the ending of their names.
        broken: files whose front matter is broken, each with the reason.
        encodings: files that are not UTF-8, each with its encoding.
        repeated: number of rows without an id that are equal to an earlier row of their file.
    """

    read: Counter[str] = field(default_factory=Counter)
    unread: dict[str, str] = field(default_factory=dict)
    unread_kinds: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    encodings: list[str] = field(default_factory=list)
    repeated: int = 0

    def note_read(self, path: Path) -> None:
        """Count a file that was read."""
        self.read[_kind(path)] += 1

    def note_unread(self, source: str, path: Path, error: Exception) -> None:
        """Note a file that could not be read, and why."""
        reason = f"{path}: {error.strerror}" if isinstance(error, OSError) and error.strerror else str(error)
        self.unread[source] = reason.rstrip(".")
        self.unread_kinds[_kind(path)] += 1

    def note_encoding(self, path: Path, encoding: str) -> None:
        """Note a text whose encoding is not UTF-8."""
        if encoding not in ("", UTF8):
            self.encodings.append(f"{path} ({encoding})")

    def report(self) -> None:
        """Say it on stderr, in one line for each kind."""
        if self.unread:
            say(f"skipped {len(self.unread):,} files that cannot be read", list(self.unread.values()))
        if self.encodings:
            say(
                f"{len(self.encodings):,} files are not UTF-8 and were read in the encoding in parentheses",
                self.encodings,
            )
        if self.broken:
            say(
                f"{len(self.broken):,} files have broken front matter, of which only lines `key: value` were read",
                self.broken,
            )
        if self.repeated:
            print(
                f"left out {self.repeated:,} rows without an id that repeat a row of their file",
                file=sys.stderr,
            )


def say(message: str, names: list[str]) -> None:
    """Print a message on stderr, with the first few of `names`."""
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    print(printable(f"{message}: {'; '.join(names[:MOST_NAMED])}{more}"), file=sys.stderr)


def _kind(path: Path) -> str:
    """The ending of a file's name, such as .pdf or .jsonl.gz."""
    stem, ending = os.path.splitext(path.name.lower())
    return os.path.splitext(stem)[1] + ending if ending in (".gz", ".xz") else ending
