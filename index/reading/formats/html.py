"""Text of HTML: the main part of a page, as Markdown."""

import re
from pathlib import Path
from typing import Any

from gpt_core.common.extras import extra
from index.reading.formats.encoding import decode
from index.reading.formats.extracted import Extracted

# Parts of a page that are no text of the document.
BOILERPLATE = (
    "script, style, noscript, template, nav, footer, aside, button, iframe, svg, [hidden], [role=navigation], "
    "[role=search], [role=banner], [role=contentinfo], .headerlink, .navheader, .navfooter, .sphinxsidebar"
)
MAIN = ("main", "[role=main]", "article")
# Inline marks would stand inside words and names; code blocks keep theirs.
UNWRAPPED = [
    "a",
    "span",
    "em",
    "i",
    "b",
    "strong",
    "code",
    "tt",
    "kbd",
    "samp",
    "var",
    "u",
    "font",
    "abbr",
    "mark",
    "form",
    "fieldset",
]
CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?([\w-]{2,40})", re.IGNORECASE)
LEAST_SHARE = 0.3  # of the text of a page that its main part has
HEAD = 4096  # bytes in which the charset is declared
BLANK_LINES = re.compile(r"\n{3,}")


def read_html(path: Path) -> tuple[Extracted, str]:
    """The text of an HTML file, and the name of its encoding.

    Raises:
        Unreadable: if it is not text.
    """
    data = path.read_bytes()
    declared = CHARSET.search(data[:HEAD])
    text, encoding = decode(data, declared[1].decode() if declared else None)
    return html_to_markdown(text), encoding


def html_to_markdown(html: str) -> Extracted:
    """The main part of a page as Markdown; its title is the page's, else the first heading."""
    with extra("documents"):
        import html_to_markdown as converter
        from selectolax.lexbor import LexborHTMLParser
    tree: Any = LexborHTMLParser(html)
    title = tree.css_first("title")
    for node in tree.css(BOILERPLATE):
        node.decompose()
    for code in tree.css("pre *"):
        code.unwrap()
    tree.unwrap_tags(UNWRAPPED)
    body = tree.body or tree.root
    if body is None:
        return Extracted("")
    mains = (tree.css(selector) for selector in MAIN)
    root = next((found[0] for found in mains if len(found) == 1), body)
    if len(root.text()) < LEAST_SHARE * len(
        body.text()
    ):  # a teaser, or an element that is filled by a script
        root = body
    heading = root.css_first("h1")
    options = converter.ConversionOptions(extract_metadata=False, compact_tables=True, skip_images=True)
    text = converter.convert(root.html, options).content or ""
    name = title.text() if title else heading.text() if heading else ""
    return Extracted(BLANK_LINES.sub("\n\n", text).strip(), " ".join(name.split()))
