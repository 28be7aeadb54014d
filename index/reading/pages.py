"""Pages of a document, slides, or lines: where each begins in the text."""

import json
import sys
from bisect import bisect_left, bisect_right
from dataclasses import dataclass


@dataclass(frozen=True)
class PageRange:
    """Successive pages, such as "pages 3–4".

    Attributes:
        unit: "page", "slide" or "line".
        first, last: numbers from 1.
        breaks: offsets (last - first,) into the document's text, in code points, at which the pages after the first
            begin.
    """

    unit: str
    first: int
    last: int
    breaks: tuple[int, ...] = ()

    def __str__(self) -> str:
        if self.first == self.last:
            return f"{self.unit} {self.first}"
        return f"{self.unit}s {self.first}–{self.last}"

    def of(self, start: int, end: int) -> "PageRange":
        """Those of the pages that have the text from `start` to `end`."""
        before = bisect_right(self.breaks, start)
        after = max(bisect_left(self.breaks, end), before)
        return PageRange(self.unit, self.first + before, self.first + after, self.breaks[before:after])


@dataclass(frozen=True)
class Pages:
    """Where the pages of a text begin.

    Attributes:
        unit: "page", "slide" or "line".
        starts: offsets (n,) in code points, ascending; that of page i + 1 is starts[i].
    """

    unit: str
    starts: tuple[int, ...]

    def of(self, start: int, end: int) -> PageRange:
        """The pages that have the text from `start` to `end`."""
        return PageRange(self.unit, 1, len(self.starts), self.starts[1:]).of(start, end)

    def to_json(self) -> str:
        """The pages as JSON."""
        return json.dumps([self.unit, *self.starts])

    @classmethod
    def from_json(cls, text: str) -> "Pages":
        """Parse the output of `to_json`."""
        unit, *starts = json.loads(text)
        return cls(unit, tuple(starts))


def pages_in_json(text: str, start: int, end: int) -> PageRange:
    """`Pages.from_json(text).of(start, end)`, by bisection in the JSON: a file of code may have thousands of lines."""
    unit = text[2 : text.index('"', 2)]
    second = text.find(" ") + 1  # a space is before each number; the first is not among the breaks

    def number_after(place: int) -> int:
        space = text.find(" ", place)
        comma = text.find(",", space)
        return sys.maxsize if space < 0 else int(text[space + 1 : comma if comma >= 0 else -1])

    places = range(second, len(text))
    i = second + bisect_right(places, start, key=number_after)
    j = max(second + bisect_left(places, end, key=number_after), i)
    before, after = text.count(" ", second, i), text.count(" ", second, j)
    breaks: list[str] = []
    if after > before:
        comma = text.find(",", j)
        breaks = text[text.find(" ", i) : comma if comma >= 0 else -1].split(",")
    return PageRange(unit, 1 + before, 1 + after, tuple(map(int, breaks)))
