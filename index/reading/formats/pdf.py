"""Text of PDF files, by PDFium."""

import ctypes
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from gpt_core.common.extras import extra
from index.reading.formats.extracted import Extracted, Unreadable
from index.reading.pages import Pages

# A line belongs to the paragraph above it if the distance of their baselines is at most so many font sizes.
PARAGRAPH_PITCH = 1.5
# A first or last line that so many pages have, page numbers aside, is a running head or foot, and no text.
MIN_REPEATED = 3
NUMBERING = re.compile(r"(?:\d+|[A-Z])(?:\.\d+)*\.?\s+(?=\S)")  # of a heading
NUMBER = re.compile(r"\d{1,6}")
MOST_NUMBERS = 4  # of a line, that are tried as the page's
HYPHEN_AT_END = "\ufffe"  # of a line; PDFium has joined the parts of the word around it


class _Line(NamedTuple):
    text: str
    bottom: float  # of the first character, in points from the page's lower edge
    size: float  # of the font, in points


def read_pdf(path: Path) -> Extracted:
    """The text of a PDF file. Lines that an outline names as headings are headings.

    Raises:
        Unreadable: for a file that is damaged, encrypted or without text.
    """
    with extra("documents"):
        import pypdfium2
    try:
        document = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        reason = "it is encrypted" if "password" in str(error) else "it is no PDF file, or damaged"
        raise Unreadable(f"{reason}.") from None
    with document:
        pages = [_lines(document, number) for number in range(len(document))]
        headings = _outline(document)
        title = (document.get_metadata_dict().get("Title") or "").strip()
    if not any(pages):
        raise Unreadable(f"its {len(pages)} pages have no text; scanned pages need OCR.")
    _drop_running_lines(pages, headings)
    parts: list[str] = []
    starts: list[int] = []
    length = 0
    for number, lines in enumerate(pages):
        starts.append(length)
        text = _page_text(lines, headings.get(number, {}))
        if text:
            parts.append(text + "\n\n")
            length += len(parts[-1])
    return Extracted("".join(parts).rstrip(), title, {}, Pages("page", tuple(starts)))


def _lines(document: Any, number: int) -> list[_Line]:
    """The lines of a page in reading order; none of a page that PDFium cannot read."""
    import pypdfium2
    from pypdfium2 import raw

    try:
        page = document[number]
        characters = page.get_textpage()
    except pypdfium2.PdfiumError:
        return []
    lines = []
    place = 0
    box = raw.FS_RECTF()
    for line in characters.get_text_range().split("\n"):
        text = " ".join(line.replace(HYPHEN_AT_END, "").split())
        if text:
            first = place + len(line) - len(line.lstrip())
            raw.FPDFText_GetLooseCharBox(characters, first, ctypes.byref(box))
            lines.append(_Line(text, box.bottom, raw.FPDFText_GetFontSize(characters, first)))
        place += len(line) + 1
    characters.close()
    page.close()
    return lines


def _outline(document: Any) -> dict[int, dict[str, int]]:
    """The headings of the outline: page index → text without its number, in lower case → level from 1."""
    import pypdfium2

    headings: dict[int, dict[str, int]] = {}
    try:
        for bookmark in document.get_toc():
            target = bookmark.get_dest()
            page = target.get_index() if target else None
            if page is not None:
                headings.setdefault(page, {})[_plain(bookmark.get_title())] = bookmark.level + 1
    except pypdfium2.PdfiumError:  # a damaged outline
        pass
    return headings


def _plain(text: str) -> str:
    words = " ".join(text.split())
    number = NUMBERING.match(words)
    return words[number.end() if number else 0 :].lower()


def _drop_running_lines(pages: list[list[_Line]], headings: dict[int, dict[str, int]]) -> None:
    """Drop the first and the last line of pages where several have the same, but for a number that numbers the pages.

    A heading of the outline is kept, and so are numbers that do not run with the pages, such as those of a table.
    """
    for place in (0, -1):
        keys = [
            _running_keys(lines[place].text, number) if lines else () for number, lines in enumerate(pages)
        ]
        count = Counter(key for some in keys for key in some)
        for number, (lines, some) in enumerate(zip(pages, keys, strict=True)):
            is_heading = bool(lines) and _plain(lines[place].text) in headings.get(number, {})
            if len(lines) > 1 and not is_heading and any(count[key] >= MIN_REPEATED for key in some):
                del lines[place]


def _running_keys(line: str, page: int) -> tuple[str, ...]:
    """The line, and the line with one of its numbers as the distance to the page's; equal on pages that it numbers."""
    numbers = list(NUMBER.finditer(line))[:MOST_NUMBERS]
    return (line, *(f"{line[: n.start()]}#{int(n[0]) - page}#{line[n.end() :]}" for n in numbers))


def _page_text(lines: list[_Line], headings: dict[str, int]) -> str:
    text = ""
    above: _Line | None = None
    for line in lines:
        level = headings.get(_plain(line.text), 0)
        if above is not None:
            pitch = above.bottom - line.bottom
            is_new = pitch > PARAGRAPH_PITCH * max(line.size, above.size) or abs(line.size - above.size) > 1
            text += "\n\n" if is_new or level or text.rpartition("\n")[2].startswith("#") else "\n"
        text += "#" * min(level, 6) + " " * bool(level) + line.text
        above = line
    return text
