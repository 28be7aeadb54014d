"""Reading of JSON and text files, with error messages that name the file."""

import json
from pathlib import Path
from typing import Any

from gpt_core.common.errors import InputError


def read_json(path: Path, kind: type = dict, optional: bool = True) -> Any:
    """The content of a JSON file.

    Args:
        path: the file.
        kind: the expected type of its content: dict or list.
        optional: return an empty `kind` for a missing file.

    Raises:
        InputError: for a missing file that is not optional, invalid JSON, or content of another type.
    """
    if path.is_file():
        return parse_json(read_text(path), str(path), kind)
    if optional:
        return kind()
    raise InputError(f"There is no file {path}; expected a JSON file.")


def read_text(path: Path) -> str:
    """The content of a text file; InputError if it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error.reason} at byte {error.start}.") from None


def parse_json(text: str, source: str, kind: type) -> Any:
    """Parse `text` as JSON of type `kind` (dict or list); InputError, naming `source`, for anything else."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source} is not valid JSON: {error}") from None
    if not isinstance(values, kind):
        expected = "an object" if kind is dict else "a list"
        raise InputError(f"{source} holds a {type(values).__name__}; expected {expected}.")
    return values
