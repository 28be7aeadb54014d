"""The text of a file, by the ending of its name."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from gpt_core.common.list_files import has_ending
from index.reading.formats.encoding import decode
from index.reading.formats.epub import read_epub
from index.reading.formats.extracted import Extracted, Unreadable, reading
from index.reading.formats.html import read_html
from index.reading.formats.notebook import read_notebook
from index.reading.formats.office import read_docx, read_odf, read_pptx, read_rtf
from index.reading.formats.pdf import read_pdf
from index.reading.pages import Pages
from index.reading.structure import text_lines
from index.reading.worker import in_worker

TEXT = (".txt", ".md", ".markdown", ".rst", ".adoc", ".org", ".tex")
HTML = (".html", ".htm", ".xhtml")
LANGUAGES = (
    "bash c cc cpp cs cu cxx go h hpp java jl js jsx kt lua mjs php pl proto py pyi r rb rs scala sh sql swift ts tsx "
    "zig"
)
CODE = tuple(f".{ending}" for ending in LANGUAGES.split())
READERS: dict[str, Callable[[Path], Extracted]] = {
    ".pdf": read_pdf,
    ".docx": read_docx,
    ".docm": read_docx,
    ".pptx": read_pptx,
    ".pptm": read_pptx,
    ".odt": read_odf,
    ".odp": read_odf,
    ".rtf": read_rtf,
    ".epub": read_epub,
    ".ipynb": read_notebook,
}
EXTRACTED = (*TEXT, *HTML, *CODE, *READERS)
MOST_CHARACTERS = 1 << 28
# Characters that no text has; formats that are not text may give them.
NOT_TEXT = re.compile("[\0-\x08\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
# Titles that programs give to documents without one.
NO_TITLE = re.compile(
    r"untitled|\(?anonymous\)?|(?:microsoft (?:word|powerpoint|excel)|powerpoint presentation|document)\b.*"
    r"|.*\.(?:docx?|pptx?|xlsx?|pdf|tex|dvi|ps|indd|qxd|odt|rtf|txt)|<[0-9a-f]+>",
    re.IGNORECASE,
)


def extract(path: Path) -> tuple[Extracted, str]:
    """The text of a file that is one document, and its encoding, "" of a format that is not text.

    Raises:
        Unreadable, MissingPackage: as `reading`.
        OSError: if the file cannot be read.
    """
    with reading(path):
        return _read(path)


def _read(path: Path) -> tuple[Extracted, str]:
    if has_ending(path, TEXT):
        text, encoding = decode(path.read_bytes())
        return Extracted(text), encoding
    if has_ending(path, CODE):
        text, encoding = decode(path.read_bytes())
        return _code(text, path.suffix[1:].lower()), encoding
    found, encoding = in_worker(_read_format, path)
    if not found.text.strip():
        raise Unreadable("it has no text.")
    if len(found.text) > MOST_CHARACTERS:
        raise Unreadable(f"its text has {len(found.text):,} characters; the most is {MOST_CHARACTERS:,}.")
    title = "" if NO_TITLE.fullmatch(found.title) or NOT_TEXT.search(found.title) else found.title
    # a space in place of such a character, so that the pages begin where they began
    return replace(found, text=NOT_TEXT.sub(" ", found.text), title=title), encoding


def _read_format(path: Path) -> tuple[Extracted, str]:
    """The text of a file that is no text itself, or HTML."""
    return read_html(path) if has_ending(path, HTML) else (READERS[path.suffix.lower()](path), "")


def _code(text: str, language: str) -> Extracted:
    """Source code in a fence; its lines are its pages."""
    fence = f"```{language}\n"
    starts, place = [], len(fence)
    for line in text_lines(text):
        starts.append(place)
        place += len(line)
    return Extracted(
        f"{fence}{text.rstrip()}\n```" if text.strip() else "", pages=Pages("line", tuple(starts))
    )
