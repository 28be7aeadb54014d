"""What a reading of files has to report."""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gpt_core.common.extras import MissingPackage
from gpt_core.common.terminal import printable
from index.reading.formats.encoding import UTF8
from index.reading.source_files import SourceFile

MOST_NAMED = 5  # files that a message names; further ones are only counted


@dataclass
class ReadingLog:
    """What a reading of files has to report.

    Attributes:
        read: sources of the files that were read.
        unread: why files in folders could not be read, by source: what follows the path in a message about the file.
        again: sources of those of them that may be readable next time, as after the installation of a package.
        broken: files whose front matter is broken, each with the reason.
        encodings: files that are not UTF-8, each with its encoding.
        unclosed: CSV files that end within quotation marks, each with the line.
        repeated: number of rows without an id that are equal to an earlier row of their file.
    """

    read: set[str] = field(default_factory=set)
    unread: dict[str, str] = field(default_factory=dict)
    again: set[str] = field(default_factory=set)
    broken: list[str] = field(default_factory=list)
    encodings: list[str] = field(default_factory=list)
    unclosed: list[str] = field(default_factory=list)
    repeated: int = 0

    def note_unread(self, source: str, path: Path, error: Exception) -> None:
        """Note a file that could not be read, and why."""
        said = f"{path}: {error.strerror}" if isinstance(error, OSError) and error.strerror else str(error)
        # Without the path, which may be given in another spelling next time.
        reason = said.removeprefix(str(path)) if said.startswith(str(path)) else f": {said}"
        self.unread[source] = reason.rstrip(".")
        if isinstance(error, OSError | MissingPackage):
            self.again.add(source)

    def note_encoding(self, path: Path, encoding: str) -> None:
        """Note a text whose encoding is not UTF-8."""
        if encoding not in ("", UTF8):
            self.encodings.append(f"{path} ({encoding})")

    def problems(self, files: Sequence[SourceFile]) -> list[str]:
        """The paths of those of `files` that could not be read, each with the reason."""
        return [f"{file.path}{self.unread[file.source]}" for file in files if file.source in self.unread]

    def note_unclosed(self, path: Path, line: int) -> None:
        """Note a CSV file whose row on `line` has a quotation mark that is never closed."""
        self.unclosed.append(f"{path}, line {line}")

    def skipped(self) -> str:
        """How many files could not be read, in words; "" for none."""
        return f"{len(self.unread):,} files skipped" if self.unread else ""

    def report(self, files: Sequence[SourceFile]) -> None:
        """Say it on stderr, in one line for each kind; `files` are those that were to be read."""
        if problems := self.problems(files):
            say(f"skipped {len(problems):,} files that cannot be read", problems)
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
        if self.unclosed:
            say(
                f"{len(self.unclosed):,} files have a row with a quotation mark that is never closed, so that it has "
                "all lines below it",
                self.unclosed,
            )
        if self.repeated:
            print(
                f"left out {self.repeated:,} rows without an id that repeat a row of their file",
                file=sys.stderr,
            )

    def print_table(self, files: Sequence[SourceFile]) -> None:
        """Print how many of `files` were read, unchanged or skipped, and why, by the ending of their names."""
        kinds: dict[str, list[SourceFile]] = {}
        for file in files:
            kinds.setdefault(file.kind, []).append(file)
        if len(kinds) < 2 and not self.unread:
            return
        width = max(len(kind) for kind in ("files", *kinds))
        print(f"{'files':<{width}}  {'read':>7} {'unchanged':>9} {'skipped':>7}")
        for kind, some in sorted(kinds.items()):
            skipped = [file for file in some if file.source in self.unread]
            n_read = sum(file.source in self.read for file in some)
            reasons = Counter(self.unread[file.source].lstrip(":, ") for file in skipped)
            why = "; ".join(
                f"{reason} ({n})" if n > 1 else reason for reason, n in reasons.most_common(MOST_NAMED)
            )
            n_same = len(some) - n_read - len(skipped)
            line = f"{kind:<{width}}  {n_read:>7,} {n_same:>9,} {len(skipped):>7,}  {why}"
            print(printable(line.rstrip()))


def say(message: str, names: list[str]) -> None:
    """Print a message on stderr, with the first few of `names`."""
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    print(printable(f"{message}: {'; '.join(names[:MOST_NAMED])}{more}"), file=sys.stderr)
