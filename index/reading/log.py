"""What a reading of files has to report."""

import sys
from dataclasses import dataclass, field

from gpt_core.common.terminal import printable

MOST_NAMED = 5  # files that a message names; further ones are only counted


@dataclass
class ReadingLog:
    """What a reading of files has to report.

    Attributes:
        unread: files in folders that could not be read, each with the reason, by source.
        broken: files whose front matter is broken, each with the reason.
        repeated: number of lines without an id that are equal to an earlier line of their file.
    """

    unread: dict[str, str] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    repeated: int = 0

    def report(self) -> None:
        """Say it on stderr, in one line for each kind."""
        if self.unread:
            say(f"skipped {len(self.unread):,} files that are not text", list(self.unread.values()))
        if self.broken:
            say(
                f"{len(self.broken):,} files have broken front matter, of which only lines `key: value` were read",
                self.broken,
            )
        if self.repeated:
            print(
                f"left out {self.repeated:,} lines without an id that repeat a line of their file",
                file=sys.stderr,
            )


def say(message: str, names: list[str]) -> None:
    """Print a message on stderr, with the first few of `names`."""
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    print(printable(f"{message}: {'; '.join(names[:MOST_NAMED])}{more}"), file=sys.stderr)
