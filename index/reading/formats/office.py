"""Text of word processors and presentations: DOCX, ODT, RTF, PPTX, ODP."""

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from gpt_core.common.extras import extra
from index.reading.formats.archive import member, open_zip
from index.reading.formats.encoding import decode
from index.reading.formats.extracted import Extracted
from index.reading.formats.html import html_to_markdown
from index.reading.formats.tables import table
from index.reading.formats.xml import local, parse_xml
from index.reading.pages import Pages

ODF_TEXT = "{urn:oasis:names:tc:opendocument:xmlns:text:1.0}"
ODF_TABLE = "{urn:oasis:names:tc:opendocument:xmlns:table:1.0}"
MOST_REPEATED = 100  # spaces, or equal cells of a row, that one element stands for


def read_docx(path: Path) -> Extracted:
    """A Word document: paragraphs, headings, lists, tables and notes, by mammoth.

    Raises:
        Unreadable: if it is damaged or encrypted.
    """
    with extra("documents"):
        import mammoth
    with open_zip(path) as archive:
        has_fields = "docProps/core.xml" in archive.namelist()
        fields = parse_xml(member(archive, "docProps/core.xml")) if has_fields else Element("none")
    title = next((element.text or "" for element in fields if local(element) == "title"), "")
    with path.open("rb") as file:
        html = mammoth.convert_to_html(file, convert_image=mammoth.images.img_element(lambda image: {})).value
    return replace(html_to_markdown(f"<body>{html}</body>"), title=" ".join(title.split()))


def read_rtf(path: Path) -> Extracted:
    """A file of Rich Text Format, without its marks."""
    with extra("documents"):
        from striprtf.striprtf import rtf_to_text
    text, _ = decode(path.read_bytes(), "cp1252")
    return Extracted(rtf_to_text(text, errors="ignore").strip())


def read_pptx(path: Path) -> Extracted:
    """A presentation of PowerPoint: the title of each slide as a heading, its texts, tables and notes.

    Raises:
        Unreadable: if it is damaged or encrypted.
    """
    with extra("documents"):
        from pptx import Presentation
    with open_zip(path):
        pass
    presentation = Presentation(str(path))
    slides = [_slide(slide) for slide in presentation.slides]
    return _of_slides(slides, presentation.core_properties.title or "")


def _slide(slide: Any) -> str:
    title = slide.shapes.title
    heading = " ".join(title.text_frame.text.split()) if title is not None else ""
    blocks = [f"## {heading}"] if heading else []
    blocks += [block for shape in slide.shapes if shape != title for block in _shape(shape)]
    if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
        blocks.append(slide.notes_slide.notes_text_frame.text)
    return "\n\n".join(block.strip() for block in blocks if block.strip())


def _shape(shape: Any) -> Iterator[str]:
    if getattr(shape, "shapes", None) is not None:  # a group
        for inner in shape.shapes:
            yield from _shape(inner)
    elif shape.has_text_frame:
        yield "\n\n".join(p.text.replace("\v", "\n") for p in shape.text_frame.paragraphs if p.text.strip())
    elif getattr(shape, "has_table", False):
        yield table([[cell.text for cell in row.cells] for row in shape.table.rows])


def read_odf(path: Path) -> Extracted:
    """A text or a presentation of OpenDocument.

    Raises:
        Unreadable: if it is damaged or encrypted.
    """
    with open_zip(path) as archive:
        content = parse_xml(member(archive, "content.xml"))
        meta = parse_xml(member(archive, "meta.xml")) if "meta.xml" in archive.namelist() else Element("none")
    title = next((element.text or "" for element in meta.iter() if local(element) == "title"), "")
    slides = [e for e in content.iter() if local(e) == "page" and "drawing" in e.tag]
    if slides:
        return _of_slides(["\n\n".join(_odf_blocks(slide)) for slide in slides], title)
    body = next((e for e in content.iter() if local(e) == "text" and "office" in e.tag), content)
    return Extracted("\n\n".join(_odf_blocks(body)), title.strip())


def _odf_blocks(parent: Element) -> Iterator[str]:
    """The blocks of text below an element, in order."""
    for element in parent:
        name = local(element)
        text = _odf_text(element) if name in ("h", "p") else ""
        if name == "h" and text:
            yield "#" * min(int(element.get(f"{ODF_TEXT}outline-level", "1")), 6) + " " + text
        elif name == "p":
            if text:
                yield text
            for frame in element:  # a picture's frame with a text box
                if local(frame) == "frame":
                    yield from _odf_blocks(frame)
        elif name == "list-item":
            yield "- " + "\n".join(_odf_blocks(element))
        elif name == "table":
            yield table([list(_odf_cells(row)) for row in _odf_rows(element)])
        elif name not in ("tracked-changes", "notes", "forms"):
            yield from _odf_blocks(element)


def _odf_rows(parent: Element) -> Iterator[Element]:
    """The rows of a table, without those of tables inside it."""
    for element in parent:
        if local(element) == "table-row":
            yield element
        elif local(element) in ("table-header-rows", "table-row-group", "table-rows"):
            yield from _odf_rows(element)


def _odf_cells(row: Element) -> Iterator[str]:
    """The texts of a row's cells; a cell may stand for several equal ones."""
    for cell in row:
        if local(cell) in ("table-cell", "covered-table-cell"):
            text = " ".join(_odf_blocks(cell))
            repeated = int(cell.get(f"{ODF_TABLE}number-columns-repeated", "1"))
            yield from [text] * (min(repeated, MOST_REPEATED) if text else 1)


def _odf_text(element: Element) -> str:
    """The characters of a paragraph; spaces and tabs are elements in OpenDocument."""
    text = io.StringIO()

    def add(part: Element) -> None:
        text.write(part.text or "")
        for child in part:
            name = local(child)
            if name == "s":
                text.write(" " * min(int(child.get(f"{ODF_TEXT}c", "1")), MOST_REPEATED))
            elif name in ("tab", "line-break"):
                text.write("\t" if name == "tab" else "\n")
            elif name not in ("frame", "annotation"):
                add(child)
            text.write(child.tail or "")

    add(element)
    return text.getvalue().strip()


def _of_slides(slides: list[str], title: str) -> Extracted:
    starts: list[int] = []
    length = 0
    for slide in slides:
        starts.append(length)
        length += len(slide) + 2 * bool(slide)
    text = "\n\n".join(filter(None, slides))
    return Extracted(text, " ".join(title.split()), {}, Pages("slide", tuple(starts)))
