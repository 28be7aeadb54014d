"""Documents from Markdown and plain text."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from gpt_core.common.errors import InputError
from gpt_core.common.list_files import has_ending
from index.reading.document import Document
from index.reading.log import ReadingLog
from index.reading.source_files import SourceFile

MARKDOWN = (".md", ".markdown")
FRONT_MATTER = re.compile(r"---\r?\n(.*?\r?\n)---\r?\n", re.DOTALL)


FENCE = re.compile(r"^(```|~~~).*?^\1", re.DOTALL | re.MULTILINE)


HEADING = re.compile(r"^#{1,6}[ \t]+(.+?)[ \t]*#*[ \t\r]*$", re.MULTILINE)


class NotText(InputError):
    """The file is not UTF-8 text."""


def read_text_file(file: SourceFile, name: str, log: ReadingLog) -> Iterator[tuple[str, Document]]:
    """Yield a Markdown or plain-text file as one document, with the file's path for error messages.

    Raises:
        NotText: if the file is not UTF-8 text.
    """
    try:
        text = file.path.read_bytes().decode("utf-8-sig")  # keeps line ends, so that offsets match the file
    except UnicodeDecodeError as error:
        raise NotText(f"{file.path} is not UTF-8 text: {error.reason} at byte {error.start}.") from None
    if "\0" in text:
        raise NotText(f"{file.path} is not text: it contains a zero byte.")
    title, metadata = _markdown_head(text) if has_ending(file.path, MARKDOWN) else ("", {})
    title = title or (Path(file.source).stem if text.strip() else "")  # an empty file has no title either
    yield str(file.path), Document(name, text, title, metadata, file.source)


def _markdown_head(text: str) -> tuple[str, dict[str, Any]]:
    """Title and front matter fields; neither is removed from the document's text."""
    metadata: dict[str, Any] = {}
    if front := FRONT_MATTER.match(text):
        try:
            loaded = _as_json(yaml.safe_load(front[1]))
        # The text begins with a horizontal rule instead of front matter; an invalid date; a recursive alias.
        except (yaml.YAMLError, ValueError, RecursionError):
            loaded = None
        if isinstance(loaded, dict):
            metadata = loaded
    heading = HEADING.search(FENCE.sub("", text[front.end() if front else 0 :]))
    return str(metadata.pop("title", None) or (heading[1] if heading else "")), metadata


def _as_json(value: Any) -> Any:
    """YAML data with keys and values that JSON lacks, such as dates, converted to strings."""
    if isinstance(value, dict):
        return {str(key): _as_json(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_as_json(one) for one in value]
    known = (
        value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
    )
    return value if known else str(value)
