"""Where a text should be divided, and where not: before its headings, and not inside its tables and code."""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass

from index.reading.structure import blocks


@dataclass(frozen=True)
class Layout:
    """Offsets in code points, ascending.

    Attributes:
        headings: starts (n,) of the lines of headings.
        paths: for each heading its text behind those of the headings above it, the outermost first.
        starts, ends: (m,) of the tables and pieces of code, with the lines that enclose them.
    """

    headings: list[int]
    paths: list[tuple[str, ...]]
    starts: list[int]
    ends: list[int]

    @classmethod
    def of(cls, text: str) -> "Layout":
        """The layout of a text, by its Markdown or reStructuredText."""
        headings: list[int] = []
        paths: list[tuple[str, ...]] = []
        path: list[tuple[int, str]] = []  # levels and texts of the headings above the next one
        starts: list[int] = []
        ends: list[int] = []
        before = ""  # the kind of the last block
        for block in blocks(text):
            line = text.rfind("\n", 0, block.start) + 1
            if block.kind == "heading":
                path = [above for above in path if above[0] < block.level]
                path.append((block.level, " ".join(text[block.start : block.end].split())))
                headings.append(line)
                paths.append(tuple(heading for _, heading in path))
            elif block.kind in ("row", "code"):
                end = _line_end(text, block.end)
                if block.kind == before and _belongs(text[ends[-1] : line]):
                    ends[-1] = end
                else:
                    starts.append(_with_mark_above(text, line))
                    ends.append(end)
            before = block.kind
        for i, end in enumerate(ends):
            ends[i] = _with_mark_below(text, end)
        return cls(headings, paths, starts, ends)

    def around(self, place: int) -> tuple[int, int] | None:
        """The table or code that `place` is inside of; None at its start, at its end, and elsewhere."""
        i = bisect_left(self.starts, place) - 1
        return (self.starts[i], self.ends[i]) if i >= 0 and place < self.ends[i] else None

    def path(self, place: int) -> tuple[str, ...]:
        """The heading of the section that `place` is in, behind those above it; empty before the first heading."""
        i = bisect_right(self.headings, place) - 1
        return self.paths[i] if i >= 0 else ()

    def last_heading(self, after: int, up_to: int) -> int | None:
        """The last heading that begins behind `after` and not behind `up_to`."""
        i = bisect_right(self.headings, up_to) - 1
        return self.headings[i] if i >= 0 and self.headings[i] > after else None

    def begins_at(self, place: int) -> bool:
        """Whether a heading, a table or code begins at `place`."""
        return any(
            i < len(starts) and starts[i] == place
            for starts in (self.headings, self.starts)
            for i in [bisect_left(starts, place)]
        )


def _belongs(between: str) -> bool:
    """Whether two blocks of a kind are one although `between` separates them: blank lines of code, a table's border."""
    return all(not line.strip() or _is_border(line) for line in between.split("\n"))


def _is_border(line: str) -> bool:
    return not line.strip(" \t\r|+-=:")


def _is_mark(line: str) -> bool:
    """Whether a line begins or ends a piece of code or a table."""
    return line.lstrip().startswith(("```", "~~~")) or (bool(line.strip()) and _is_border(line))


def _line_end(text: str, place: int) -> int:
    end = text.find("\n", place)
    return len(text) if end < 0 else end


def _with_mark_above(text: str, line: int) -> int:
    """The start of the line above the one that starts at `line`, if it is a mark; else `line`."""
    above = text.rfind("\n", 0, max(line - 1, 0)) + 1
    return above if line and _is_mark(text[above : line - 1]) else line


def _with_mark_below(text: str, end: int) -> int:
    below = _line_end(text, end + 1)
    return below if end < len(text) and _is_mark(text[end + 1 : below]) else end
