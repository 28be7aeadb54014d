"""Text of EPUB books."""

import posixpath
from pathlib import Path
from urllib.parse import unquote

from index.reading.formats.archive import member, open_zip
from index.reading.formats.encoding import decode
from index.reading.formats.extracted import Extracted, Unreadable
from index.reading.formats.html import html_to_markdown
from index.reading.formats.xml import local, parse_xml


def read_epub(path: Path) -> Extracted:
    """The chapters of a book in reading order; author and language are metadata.

    Raises:
        Unreadable: if it is damaged, or encrypted by a shop.
    """
    with open_zip(path) as archive:
        if "META-INF/encryption.xml" in archive.namelist() and "META-INF/rights.xml" in archive.namelist():
            raise Unreadable("it is encrypted.")
        container = parse_xml(member(archive, "META-INF/container.xml"))
        place = next((e.get("full-path", "") for e in container.iter() if local(e) == "rootfile"), "")
        package = parse_xml(member(archive, place))
        fields = {
            local(e): " ".join((e.text or "").split())
            for e in reversed(list(package.iter()))
            if "elements" in e.tag
        }
        items = {e.get("id"): e for e in package.iter() if local(e) == "item"}
        chapters = [
            items[e.get("idref")] for e in package.iter() if local(e) == "itemref" and e.get("idref") in items
        ]
        names: dict[str, None] = {}  # in order, each once
        for chapter in chapters:
            if "html" in chapter.get("media-type", ""):
                link = unquote(chapter.get("href", "").partition("#")[0])
                names[posixpath.normpath(posixpath.join(posixpath.dirname(place), link))] = None
        present = set(archive.namelist())
        texts = [html_to_markdown(decode(member(archive, name))[0]).text for name in names if name in present]
    metadata = {"author": fields.get("creator"), "language": fields.get("language")}
    text = "\n\n".join(filter(None, texts))
    return Extracted(
        text, fields.get("title", ""), {name: value for name, value in metadata.items() if value}
    )
