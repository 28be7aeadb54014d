"""Standard input, which can be read once, while a build reads its input twice: a copy in a temporary file."""

import os
import shutil
import sys
import tempfile
from functools import cache
from typing import BinaryIO

from gpt_core.common.errors import InputError


def check_stdin() -> None:
    """Copy standard input, up to its end.

    Raises:
        InputError: if it has no line that is not blank. An empty pipe may be that of a command that failed.
    """
    with open_stdin() as lines:
        if all(line.isspace() for line in lines):
            raise InputError("standard input is empty; expected JSON lines of documents.")


def open_stdin() -> BinaryIO:
    """The content of standard input, from its beginning."""
    if sys.stdin is None:
        raise InputError("standard input is closed; expected JSON lines of documents.")
    copy = os.fdopen(os.dup(_copy(sys.stdin.buffer)), "rb")
    copy.seek(0)
    return copy


@cache
def _copy(stdin: BinaryIO) -> int:
    """The descriptor of a copy, which has no name and is gone when the process ends."""
    if stdin.isatty():
        print("reading JSON lines from the terminal; Ctrl-D ends them", file=sys.stderr)
    try:
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(stdin, copy)
            copy.flush()
            return os.dup(copy.fileno())
    except OSError as error:
        place = f"the copy of standard input in {tempfile.gettempdir()} (set TMPDIR to another folder)"
        raise OSError(error.errno, error.strerror, place) from None
