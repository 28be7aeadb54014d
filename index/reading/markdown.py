"""Documents from Markdown and plain text."""

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from gpt_core.common.errors import InputError
from gpt_core.common.list_files import has_ending
from index.reading.document import Document
from index.reading.front_matter import read_front_matter
from index.reading.log import ReadingLog
from index.reading.source_files import SourceFile

MARKDOWN = (".md", ".markdown")
MOST_BEFORE_HEADING = (
    1 << 16
)  # characters in which a heading is looked for; parsing them takes up to half a second
# What may be a heading, or the line below one, if it is not in a code block or a comment.
HEADING = re.compile(r"^ {0,3}(?:#{1,6}(?:[ \t]|\r?$)|=+[ \t]*\r?$|-+[ \t]*\r?$).*\n?", re.MULTILINE)

BLOCKS = MarkdownIt("commonmark")
BLOCKS.core.ruler.enableOnly(["normalize", "block"])  # headings keep the marks of emphasis, links and code


class NotText(InputError):
    """The file is not UTF-8 text."""


def read_text_file(file: SourceFile, name: str, log: ReadingLog) -> Iterator[tuple[str, Document]]:
    """Yield a Markdown or plain-text file as one document, with the file's path for error messages.

    The text of a Markdown file begins behind its front matter, unless the front matter is broken, which `log` notes.

    Raises:
        NotText: if the file is not UTF-8 text.
    """
    try:
        text = file.path.read_bytes().decode("utf-8-sig")  # keeps line ends
    except UnicodeDecodeError as error:
        raise NotText(f"{file.path} is not UTF-8 text: {error.reason} at byte {error.start}.") from None
    if "\0" in text:
        raise NotText(f"{file.path} is not text: it contains a zero byte.")
    title, metadata = "", {}
    if has_ending(file.path, MARKDOWN):
        front = read_front_matter(text)
        body = text[front.end :] if front else text
        if front:
            metadata = front.fields
        title = _own_title(metadata) or first_heading(body)
        if front and front.problem:
            log.broken.append(f"{file.path} ({front.problem})")
        else:
            text = body
    title = title or (Path(file.source).stem if text.strip() else "")  # an empty file has no title either
    yield str(file.path), Document(name, text, title, metadata, file.source)


def _own_title(metadata: dict[str, Any]) -> str:
    """Take the title out of the front matter's fields; "" if it has none, or one that is a list or an object."""
    title = metadata.get("title")
    if isinstance(title, list | dict):
        return ""
    metadata.pop("title", None)
    return title.strip() if isinstance(title, str) else "" if title is None else json.dumps(title)


def first_heading(text: str) -> str:
    """The text of the first heading that is not empty; "" if there is none in the first 65,536 characters.

    Headings are those of CommonMark, with `#` or underlined, outside lists and quotations.
    """
    end = len(text)
    if end > MOST_BEFORE_HEADING:
        end = text.rfind("\n", 0, MOST_BEFORE_HEADING) + 1
    parsed = last = 0
    for match in HEADING.finditer(text, 0, end):
        # Blocks are decided from left to right, so the text up to a candidate decides whether it is a heading. Each
        # parse is twice as long as the one before, so that many candidates take no quadratic time.
        last = match.end()
        if last >= 2 * parsed:
            parsed = last
            if heading := _heading_in(text[:parsed]):
                return heading
    return _heading_in(text[:last]) if last > parsed else ""


def _heading_in(text: str) -> str:
    for opening, content in pairwise(BLOCKS.parse(text)):
        if opening.type == "heading_open" and opening.level == 0 and content.content.strip():
            return " ".join(content.content.split())
    return ""
