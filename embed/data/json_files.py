"""JSON and text files, read with errors that name the file."""

import json
from pathlib import Path
from typing import Any

from gpt_core.common.errors import InputError


def read_json(path: Path, kind: type = dict, optional: bool = True) -> Any:
    """The content of a JSON file.

    Args:
        path: the file.
        kind: what it must hold: dict or list.
        optional: give an empty `kind` for a missing file.

    Raises:
        InputError: for a missing file that is not optional, and for one that holds something else.
    """
    if path.is_file():
        return parse_json(read_text(path), str(path), kind)
    if optional:
        return kind()
    raise InputError(f"{path} is missing; expected it in a sentence-transformers folder.")


def read_text(path: Path) -> str:
    """The content of a text file; InputError for one that is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error.reason} at byte {error.start}.") from None


def parse_json(text: str, source: str, kind: type) -> Any:
    """`text` as JSON of a kind; InputError names `source`."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{source} is not valid JSON: {error}") from None
    if not isinstance(values, kind):
        raise InputError(f"{source} holds a JSON {type(values).__name__}; expected a {kind.__name__}.")
    return values
