"""Small files of many formats, made by hand or by the writers that come with the readers."""

import json
import zipfile
from pathlib import Path

import xlsxwriter
from pptx import Presentation
from pptx.util import Inches


def make_pdf(path: Path, pages: list[list[tuple[int, int, str]]], title: str = "", outline: str = "") -> Path:
    """A PDF file whose pages have lines (height in points, font size, text); `outline` names a heading of page 1."""
    parts: list[bytes] = []

    def add(body: str | bytes) -> int:
        parts.append(body.encode("latin-1") if isinstance(body, str) else body)
        return len(parts)

    font = add("<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    tree, first = len(parts) + 2 * len(pages) + 1, len(parts) + 2
    for lines in pages:
        text = "\n".join(f"BT /F1 {size} Tf 72 {height} Td ({line}) Tj ET" for height, size, line in lines)
        content = add(f"<< /Length {len(text)} >>\nstream\n{text}\nendstream")
        add(
            f"<< /Type /Page /Parent {tree} 0 R /MediaBox [0 0 612 792] /Contents {content} 0 R "
            f"/Resources << /Font << /F1 {font} 0 R >> >> >>"
        )
    kids = " ".join(f"{first + 1 + 2 * i - 1} 0 R" for i in range(len(pages)))
    add(f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>")
    root = f"/Type /Catalog /Pages {tree} 0 R"
    if outline:
        item = len(parts) + 2
        add(f"<< /Type /Outlines /First {item} 0 R /Last {item} 0 R /Count 1 >>")
        add(f"<< /Title ({outline}) /Parent {item - 1} 0 R /Dest [{first} 0 R /Fit] >>")
        root += f" /Outlines {item - 1} 0 R"
    catalog, info = add(f"<< {root} >>"), add(f"<< /Title ({title}) >>")
    data, offsets = b"%PDF-1.4\n", []
    for number, part in enumerate(parts, 1):
        offsets.append(len(data))
        data += f"{number} 0 obj\n".encode() + part + b"\nendobj\n"
    table = f"xref\n0 {len(parts) + 1}\n0000000000 65535 f \n" + "".join(
        f"{o:010} 00000 n \n" for o in offsets
    )
    end = f"trailer\n<< /Size {len(parts) + 1} /Root {catalog} 0 R /Info {info} 0 R >>\nstartxref\n{len(data)}\n%%EOF\n"
    path.write_bytes(data + table.encode() + end.encode())
    return path


def make_zip(path: Path, members: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return path


def make_docx(path: Path, body: str, title: str = "") -> Path:
    """A Word document with the paragraphs and tables `body` in WordprocessingML."""
    word = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    types = "http://schemas.openxmlformats.org/package/2006/content-types"
    package = "http://schemas.openxmlformats.org/package/2006/relationships"
    styles = "".join(
        f'<w:style w:type="paragraph" w:styleId="Heading{n}"><w:name w:val="heading {n}"/></w:style>'
        for n in (1, 2)
    )
    return make_zip(
        path,
        {
            "[Content_Types].xml": f'<Types xmlns="{types}"><Default Extension="xml" '
            'ContentType="application/xml"/></Types>',
            "_rels/.rels": f'<Relationships xmlns="{package}"><Relationship Id="r" Target="word/document.xml" '
            f'Type="{office}/officeDocument"/></Relationships>',
            "word/_rels/document.xml.rels": f'<Relationships xmlns="{package}"><Relationship Id="s" '
            f'Target="styles.xml" Type="{office}/styles"/></Relationships>',
            "word/styles.xml": f'<w:styles xmlns:w="{word}">{styles}</w:styles>',
            "word/document.xml": f'<w:document xmlns:w="{word}"><w:body>{body}</w:body></w:document>',
            "docProps/core.xml": '<c:coreProperties xmlns:c="x" xmlns:dc="http://purl.org/dc/elements/1.1/">'
            f"<dc:title>{title}</dc:title></c:coreProperties>",
        },
    )


def paragraph(text: str, style: str = "") -> str:
    """A paragraph of WordprocessingML."""
    kind = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f"<w:p>{kind}<w:r><w:t>{text}</w:t></w:r></w:p>"


def make_pptx(path: Path, slides: list[tuple[str, str]]) -> Path:
    """A presentation of slides with a title, a text, a table with one row, and notes."""
    presentation = Presentation()
    for title, text in slides:
        slide = presentation.slides.add_slide(presentation.slide_layouts[1])
        slide.shapes.title.text = title
        slide.placeholders[1].text = text
        table = slide.shapes.add_table(1, 2, *(Inches(n) for n in (1, 3, 4, 1))).table
        table.cell(0, 0).text, table.cell(0, 1).text = "cell of", title
        slide.notes_slide.notes_text_frame.text = f"A note on {title}."
    presentation.save(str(path))
    return path


def make_xlsx(path: Path, sheets: dict[str, list[list[object]]]) -> Path:
    with xlsxwriter.Workbook(str(path)) as book:
        for name, rows in sheets.items():
            sheet = book.add_worksheet(name)
            for i, row in enumerate(rows):
                sheet.write_row(i, 0, row)
    return path


def make_odt(path: Path, body: str, title: str = "", kind: str = "text") -> Path:
    """A text or a presentation of OpenDocument with the content `body`."""
    spaces = " ".join(
        f'xmlns:{short}="urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"'
        for short, name in {"office": "office", "text": "text", "table": "table", "draw": "drawing"}.items()
    )
    content = (
        f"<office:document-content {spaces}><office:body><office:{kind}>{body}</office:{kind}></office:body>"
    )
    meta = f'<m xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>{title}</dc:title></m>'
    return make_zip(path, {"content.xml": f"{content}</office:document-content>", "meta.xml": meta})


def make_epub(
    path: Path, chapters: dict[str, str], title: str = "", author: str = "", fragment: str = ""
) -> Path:
    """A book of chapters (file name → body), each listed with `fragment` behind its name."""
    items = "".join(
        f'<item id="c{i}" href="{name.replace(" ", "%20")}{fragment}" media-type="application/xhtml+xml"/>'
        for i, name in enumerate(chapters)
    )
    order = "".join(f'<itemref idref="c{i}"/>' for i in range(len(chapters)))
    return make_zip(
        path,
        {
            "META-INF/container.xml": '<container><rootfiles><rootfile full-path="OPS/book.opf"/></rootfiles>'
            "</container>",
            "OPS/book.opf": '<package xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata>'
            f"<dc:title>{title}</dc:title><dc:creator>{author}</dc:creator><dc:language>en</dc:language></metadata>"
            f"<manifest>{items}</manifest><spine>{order}</spine></package>",
        }
        | {f"OPS/{name}": f"<html><body>{body}</body></html>" for name, body in chapters.items()},
    )


def make_notebook(path: Path, cells: list[dict[str, object]]) -> Path:
    metadata = {"kernelspec": {"language": "python"}}
    path.write_text(json.dumps({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}))
    return path
