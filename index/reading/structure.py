"""The structure of a text: its headings, paragraphs, list items, table rows and code.

One scan over the lines is for Markdown, reStructuredText and plain text alike: a text of an index does not say what it
was, and a passage may begin and end anywhere. Common cases are read as CommonMark and docutils read them.
"""

import io
import re
from collections.abc import Generator, Iterator
from typing import Literal, NamedTuple

Kind = Literal["heading", "prose", "item", "row", "code"]

_HASHES = re.compile(r" {0,3}(#{1,6})[ \t]+(.*?)[ \t#]*$")
_UNDERLINE = re.compile(r"""([=\-~^"'`*+#:.<>_])\1{2,}$""")
_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})")
_ROW = re.compile(r"[ \t]*\|.*\|$")
_BORDER = re.compile(r"(?=.*[-=]{2})[ \t]*[|+:=-][|+:= \t-]*$")  # of a table
_ITEM = re.compile(
    r"[ \t]*(?:(?:[-*+•·]|#\.|\(?\d{1,3}[.)]|\(?[A-Za-z][.)])[ \t]+"
    r"|[（(]?(?:\d{1,3}|[一二三四五六七八九十]{1,3})[、）)][ \t]*)(?=\S)"
)
_CODE_DIRECTIVE = re.compile(r"[ \t]*\.\. (?:code|code-block|sourcecode|math|parsed-literal)::")
_DIRECTIVE = re.compile(r"[ \t]*(?:\.\.(?: |$)|:[\w -]+:(?:[ \t]|$))")
_OPTION = re.compile(r"[ \t]*:[\w-]+:(?:[ \t]|$)")  # of a directive
_PROMPT = re.compile(r"[ \t]*(?:>>>|\$) ")
_CODE_SIGNS = re.compile(r"[{};=<>\\|]|\w\(|^\s*(?:#|--?\w)")
_STARTS = (_HASHES, _FENCE, _ROW, _BORDER, _ITEM, _DIRECTIVE, _PROMPT)


class Block(NamedTuple):
    """Lines of one kind, text[start:end] without the marks of a heading or an item and the white space around them.

    `level` is that of a heading, from 1; 0 for other kinds. A table row and a line of code are a block each.
    """

    kind: Kind
    start: int
    end: int
    level: int = 0


class _Line(NamedTuple):
    text: str  # without white space at its end
    start: int

    @property
    def indent(self) -> int:
        return len(self.text) - len(self.text.lstrip())

    def block(self, kind: Kind) -> Block:
        return Block(kind, self.start + self.indent, self.start + len(self.text))


def text_lines(text: str) -> Iterator[str]:
    """The lines of a text with their ends, which are those of Markdown: LF, CR LF or CR."""
    return iter(io.StringIO(text, newline=""))


def blocks(text: str) -> Iterator[Block]:
    """Yield the blocks of a text in order. Blank lines, fences, borders of tables and directives belong to none."""
    lines: list[_Line] = []
    start = 0
    for whole in text_lines(text):
        line = _Line(whole.rstrip(), start)
        if line.text or (lines and lines[-1].text):  # one of several blank lines is enough
            lines.append(line)
        start += len(whole)
    lines.append(_Line("", start))
    styles: list[str] = []  # underlines of headings, in the order of their levels
    i = 0
    while i < len(lines):
        line = lines[i]
        following = lines[i + 1].text if i + 1 < len(lines) else ""
        if not line.text:
            i += 1
        elif match := _HASHES.match(line.text):
            yield Block("heading", line.start + match.start(2), line.start + match.end(2), len(match[1]))
            i += 1
        elif _is_underline(following, line):
            if following[0] not in styles:
                styles.append(following[0])
            yield line.block("heading")._replace(level=styles.index(following[0]) + 1)
            i += 2
        elif match := _FENCE.match(line.text):
            i += 1
            while i < len(lines) - 1 and not lines[i].text.strip().startswith(match[1]):
                yield from _code(lines[i])
                i += 1
            i += 1
        elif _BORDER.match(line.text) or _UNDERLINE.match(line.text):
            i += 1
        elif _ROW.match(line.text) or _BORDER.match(following):
            yield line.block("row")
            i += 1
        elif _CODE_DIRECTIVE.match(line.text):
            i = yield from _indented(lines, i + 1, line.indent)
        elif _DIRECTIVE.match(line.text):
            i += 1
        elif _PROMPT.match(line.text) or (line.indent > 3 and _CODE_SIGNS.search(line.text)):
            yield line.block("code")
            i += 1
        else:
            i = yield from _paragraph(lines, i)


def _is_underline(below: str, line: _Line) -> bool:
    """Whether the line `below` makes `line` a heading: in docutils it is as long as the text, in CommonMark = or -."""
    match = _UNDERLINE.match(below)
    if match is None or line.indent > 3 or _ITEM.match(line.text) or _ROW.match(line.text):
        return False
    return len(below) >= len(line.text) or match[1] in "=-"


def _code(line: _Line) -> Iterator[Block]:
    if line.text and not _OPTION.match(line.text):
        yield line.block("code")


def _indented(lines: list[_Line], i: int, indent: int) -> Generator[Block, None, int]:
    """Yield the lines from `i` that are blank or indented more than `indent` as code; return the place after them."""
    while i < len(lines) and (not lines[i].text or lines[i].indent > indent):
        yield from _code(lines[i])
        i += 1
    return i


def _paragraph(lines: list[_Line], i: int) -> Generator[Block, None, int]:
    """Yield a paragraph or list item and, if it ends with "::", the code that follows; return the place after them."""
    first = lines[i]
    item = _ITEM.match(first.text)
    start = first.start + (item.end() if item else first.indent)
    while True:
        last = lines[i]
        i += 1
        after = lines[i] if i < len(lines) else None
        if after is None or not after.text or any(start.match(after.text) for start in _STARTS):
            break
    yield Block("item" if item else "prose", start, last.start + len(last.text))
    if last.text.endswith("::"):
        i = yield from _indented(lines, i, first.indent)
    return i
