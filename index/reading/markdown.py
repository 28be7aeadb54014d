"""Documents from Markdown and plain text."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from gpt_core.common.errors import InputError
from index.reading.document import Document

FRONT_MATTER = re.compile(r"---\r?\n(.*?\r?\n)---\r?\n", re.DOTALL)


FENCE = re.compile(r"^(```|~~~).*?^\1", re.DOTALL | re.MULTILINE)


HEADING = re.compile(r"^#{1,6}[ \t]+(.+?)[ \t]*#*[ \t\r]*$", re.MULTILINE)


def read_text_file(path: Path, name: str) -> Iterator[tuple[str, Document]]:
    """The one document of a Markdown or plain-text file, with the file's path.

    Raises:
        InputError: if the file is not UTF-8.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")  # line ends as they are, so that offsets fit the source
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}.") from None
    if "\0" in text:
        raise InputError(f"{path} is not text: it holds a zero byte.")
    title, metadata = _markdown_head(text) if path.suffix == ".md" else ("", {})
    title = title or (path.stem if text.strip() else "")  # an empty file's name is nothing to find
    yield str(path), Document(name, text, title, metadata, str(path))


def _markdown_head(text: str) -> tuple[str, dict[str, Any]]:
    """The title and the front matter's fields; the text itself keeps both."""
    metadata: dict[str, Any] = {}
    if front := FRONT_MATTER.match(text):
        try:
            loaded = _as_json(yaml.safe_load(front[1]))
        # A text that begins with a rule, not with front matter; a date that is none; an alias of what it is in.
        except (yaml.YAMLError, ValueError, RecursionError):
            loaded = None
        if isinstance(loaded, dict):
            metadata = loaded
    heading = HEADING.search(FENCE.sub("", text[front.end() if front else 0 :]))
    return str(metadata.pop("title", None) or (heading[1] if heading else "")), metadata


def _as_json(value: Any) -> Any:
    """What YAML read, with the keys and values that JSON lacks, such as dates, as strings."""
    if isinstance(value, dict):
        return {str(key): _as_json(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_as_json(one) for one in value]
    known = (
        value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
    )
    return value if known else str(value)
