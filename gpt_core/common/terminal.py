"""Text output to a terminal or a pipe."""

import codecs
import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

CONTROL_CHARACTERS = re.compile(r"[\0-\x08\x0b-\x1f\x7f-\x9f]")  # except tab and line feed


def printable(text: str) -> str:
    """Untrusted text for a terminal: replaces control characters, which could change or clear it, by U+FFFD."""
    return CONTROL_CHARACTERS.sub("\ufffd", text)


def escape_unencodable() -> None:
    """From now on, write characters that stdout's encoding lacks as JSON escapes, such as \\u77e5, instead of failing.

    JSON that is printed stays valid: outside ASCII, it has characters in strings only.
    """
    codecs.register_error("json_escape", _json_escape)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
        sys.stdout.reconfigure(errors="json_escape")


def _json_escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4)), error.end


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
