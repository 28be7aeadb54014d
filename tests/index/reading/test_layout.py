"""Where a text should be divided, and where not."""

import pytest

from index.reading.layout import Layout


def parts(text: str) -> tuple[list[str], list[str]]:
    """The lines that begin at the headings, and the tables and code."""
    layout = Layout.of(text)
    headings = [text[start:].partition("\n")[0] for start in layout.headings]
    return headings, [text[start:end] for start, end in zip(layout.starts, layout.ends, strict=True)]


@pytest.mark.parametrize(
    ("text", "headings", "whole"),
    [
        ("# A\n\nx\n\n## B\ny", ["# A", "## B"], []),
        ("Title\n=====\n\nx", ["Title"], []),
        ("x\n\n| a | b |\n| - | - |\n| 1 | 2 |\n\ny", [], ["| a | b |\n| - | - |\n| 1 | 2 |"]),
        ("+---+\n| a |\n+===+\n| 1 |\n+---+\nx", [], ["+---+\n| a |\n+===+\n| 1 |\n+---+"]),
        ("x\n\n```py\na = 1\n\n\nb = 2\n```\n\ny", [], ["```py\na = 1\n\n\nb = 2\n```"]),
        ("a::\n\n    if x:\n\n        y()\n\nb", [], ["    if x:\n\n        y()"]),
        ("```\na(1)\n```\n\ntext\n\n```\nb(2)\n```", [], ["```\na(1)\n```", "```\nb(2)\n```"]),
        ("```\na(1)", [], ["```\na(1)"]),
        ("", [], []),
    ],
)
def test_headings_tables_and_code(text, headings, whole):
    assert parts(text) == (headings, whole)


def test_places():
    text = "x\n\n| a |\n| 1 |\n\n# H\n"
    layout = Layout.of(text)
    start, end = text.index("| a"), text.index("\n\n#")
    assert [layout.around(place) for place in (0, start, start + 1, end - 1, end)] == [
        None,
        None,
        (start, end),
        (start, end),
        None,
    ]
    heading = text.index("#")
    assert [layout.path(place) for place in (0, heading, len(text))] == [(), ("H",), ("H",)]
    assert layout.last_heading(0, len(text)) == heading
    assert layout.last_heading(heading, len(text)) is None
    assert layout.last_heading(0, heading - 1) is None
    assert [layout.begins_at(place) for place in (0, start, heading, heading + 1)] == [
        False,
        True,
        True,
        False,
    ]


def test_the_path_of_a_heading_has_those_above_it():
    text = "# A\n\nx\n\n## B *b*\n\ny\n\n### C\n\nz\n\n## D\n\n# E"
    layout = Layout.of(text)
    assert [layout.path(text.index(word)) for word in ("x", "y", "z", "D", "E")] == [
        ("A",),
        ("A", "B *b*"),
        ("A", "B *b*", "C"),
        ("A", "D"),
        ("E",),
    ]
