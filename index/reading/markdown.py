"""The title and the fields of a Markdown file."""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from index.reading.front_matter import read_front_matter
from index.reading.log import ReadingLog

MARKDOWN = (".md", ".markdown")
MOST_BEFORE_HEADING = (
    1 << 16
)  # characters in which a heading is looked for; parsing them takes up to half a second
# What may be a heading, or the line below one, if it is not in a code block or a comment.
HEADING = re.compile(r"^ {0,3}(?:#{1,6}(?:[ \t]|\r?$)|=+[ \t]*\r?$|-+[ \t]*\r?$).*\n?", re.MULTILINE)

BLOCKS = MarkdownIt("commonmark")
BLOCKS.core.ruler.enableOnly(["normalize", "block"])  # headings keep the marks of emphasis, links and code


def read_markdown(text: str, path: Path, log: ReadingLog) -> tuple[str, str, dict[str, Any]]:
    """The text, title and metadata of a Markdown file: the front matter's fields and title, else the first heading.

    The text begins behind the front matter, unless the front matter is broken, which `log` notes.
    """
    front = read_front_matter(text)
    body = text[front.end :] if front else text
    metadata = front.fields if front else {}
    title = _own_title(metadata) or first_heading(body)
    if front and front.problem:
        log.broken.append(f"{path} ({front.problem})")
        return text, title, metadata
    return body, title, metadata


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
