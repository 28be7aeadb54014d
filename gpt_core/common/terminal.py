"""Text output to a terminal or a pipe."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

CONTROL_CHARACTERS = re.compile(r"[\0-\x08\x0b-\x1f\x7f-\x9f]")  # except tab and line feed


def printable(text: str) -> str:
    """Untrusted text for a terminal: replaces control characters, which could change or clear it, by U+FFFD."""
    return CONTROL_CHARACTERS.sub("\ufffd", text)


def write_text(text: str) -> None:
    """Write untrusted text to stdout and flush it: unchanged to a pipe or a file, `printable` to a terminal."""
    print(printable(text) if sys.stdout.isatty() else text, end="", flush=True)


@contextmanager
def ignore_broken_pipe() -> Iterator[None]:
    """End the block without an error when the reader of stdout closes the pipe, as `| head` does."""
    try:
        yield
    except BrokenPipeError:  # Python flushes stdout at exit; the null device accepts it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
