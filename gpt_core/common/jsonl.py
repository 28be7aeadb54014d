"""Reader of JSON Lines files, plain or compressed."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from gpt_core.common.compressed import DAMAGED, open_bytes
from gpt_core.common.errors import InputError

JSONL = (".jsonl", ".jsonl.gz", ".jsonl.xz")
# JSON can escape a lone half of a UTF-16 surrogate pair, which UTF-8 cannot encode.
ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def read_rows(path: Path, raw: BinaryIO | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a `.jsonl` (`.gz`, `.xz`) file, each with its location for messages: `<path>, line <number>`.

    `raw`: the opened file; None: open `path`.

    Raises:
        InputError: for an invalid line or a damaged archive.
    """
    for place, line in read_lines(path, raw=raw):
        yield place, parse_object(line, place)


def read_lines(path: Path, *, skip: int = 0, raw: BinaryIO | None = None) -> Iterator[tuple[str, bytes]]:
    """The lines of a `.jsonl` (`.gz`, `.xz`) file that are not blank, each with its location for messages.

    Args:
        path: the file.
        skip: number of lines at the start, blank ones not counted, that are skipped.
        raw: the opened file, whose position tells the caller the progress; None: open `path`.

    Raises:
        InputError: for a damaged archive.
    """
    number = 0
    with open_bytes(path, raw) as lines:
        try:
            for number, line in enumerate(lines, 1):
                if line.isspace():
                    continue
                if skip:
                    skip -= 1
                    continue
                yield f"{path}, line {number}", line
        except DAMAGED as error:
            raise InputError(f"{path} is damaged after line {number}: {error}") from None


def parse_object(line: bytes, place: str) -> dict[str, Any]:
    """The JSON object in `line`; `place` is its location for messages.

    Raises:
        InputError: if the line is not a JSON object of characters that UTF-8 can encode.
    """
    try:
        row = json.loads(line.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise InputError(f"{place}, is not UTF-8: {error.reason} at byte {error.start}.") from None
    except json.JSONDecodeError as error:  # its line number is always 1, so it is left out
        raise InputError(f"{place}, is not valid JSON: {error.msg} (character {error.pos + 1}).") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}, is not valid JSON: {error}") from None
    if not isinstance(row, dict):
        raise InputError(f"{place}: expected a JSON object, not a {type(row).__name__}.")
    if ESCAPED_SURROGATE.search(line):
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):x}"
            raise InputError(
                f"{place}, contains {half}, half of a surrogate pair, which is no character; write complete characters."
            ) from None
    return row


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")
