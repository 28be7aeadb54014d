"""Pages of a document, slides, or lines: where each begins in the text."""

import json
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
