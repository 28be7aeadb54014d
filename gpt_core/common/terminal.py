"""Text on a terminal or a pipe."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

CONTROL = re.compile(r"[\0-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and line feed


def printable(text: str) -> str:
    """Text of others for a terminal: control characters, which could recolour, retitle or clear it, become U+FFFD."""
    return CONTROL.sub("\ufffd", text)


def write_text(text: str) -> None:
    """Write text of others to stdout at once: as it is into a pipe or a file, `printable` on a terminal."""
    print(printable(text) if sys.stdout.isatty() else text, end="", flush=True)


@contextmanager
def until_nobody_reads() -> Iterator[None]:
    """Write to stdout inside; end quietly where its reader has enough, as `| head` does."""
    try:
        yield
    except BrokenPipeError:  # the null device takes what Python still flushes at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
