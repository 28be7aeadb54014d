"""Titles and front matter of Markdown files."""

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from index.reading.document import Document
from index.reading.front_matter import read_front_matter
from index.reading.markdown import MOST_BEFORE_HEADING, first_heading
from index.reading.read import iter_documents


def read(folder: Path, text: str) -> Document:
    (folder / "page.md").write_bytes(text.encode())
    (document,) = iter_documents([folder / "page.md"])
    return document


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("# A *title* #\n\nbody", "A *title*"),
        ("body\n\n## Second level\n", "Second level"),
        ("# C#", "C#"),
        ("# Learning F# #", "Learning F#"),
        ("#5 bolts\n\n# Bolts", "Bolts"),
        ("# \n\n# Not empty", "Not empty"),
        ("My Title\n========\n\nintro\n\n## Details", "My Title"),
        ("Two\nlines\n---\n", "Two lines"),
        ("```\n# no heading\n```\n# Heading\n", "Heading"),
        ("````md\n```sh\n# no heading\n```\n````\n# Heading", "Heading"),
        ("```code``` in a line\n\n# Heading", "Heading"),
        ("- item\n\n  ```\n  # no heading\n  ```\n\n# Heading", "Heading"),
        ("    # code\n\n# Heading", "Heading"),
        ("<!--\n# no heading\n-->\n\n# Heading", "Heading"),
        ("> # quoted\n\n# Heading", "Heading"),
        ("---\n\n# Real title\n\nfoo\n\n---\n\n# Second", "Real title"),
        ("---\n\n# Real title\n\nNote: see below\n\n---\n\n# Second", "Real title"),
        ("---\ntext between rules\n---\n\n# Heading", "text between rules"),
        ("# no heading\n" * 3, "no heading"),
        ("```\n" + "# comment\n" * 3000 + "```\n\n# Heading", "Heading"),
        ("text\n\n" + "- item\n" * MOST_BEFORE_HEADING + "\n# Too far", "page"),
        ("no heading at all", "page"),
    ],
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_the_title_is_the_first_heading_of_commonmark(tmp_path, text, title, line_end):
    document = read(tmp_path, text.replace("\n", line_end))
    assert (document.title, document.metadata) == (title, {})
    assert document.text == text.replace("\n", line_end)


@given(
    st.lists(
        st.sampled_from(
            [
                "# a",
                "## b #",
                "text",
                "===",
                "---",
                "```",
                "~~~~",
                "- x",
                "  # c",
                "    # d",
                "> # q",
                "<!--",
                "-->",
                "",
            ]
        ),
        max_size=12,
    )
)
def test_the_heading_is_the_first_one_of_a_whole_parse(lines):
    text = "\n".join(lines)
    tokens = MarkdownIt("commonmark").parse(text)
    headings = [
        tokens[i + 1].content
        for i, token in enumerate(tokens)
        if (token.type, token.level) == ("heading_open", 0)
    ]
    assert first_heading(text) == next((" ".join(one.split()) for one in headings if one), "")


@pytest.mark.parametrize(
    ("block", "fields"),
    [
        ("date: 2026-01-02\ntags: [a, b]", {"date": "2026-01-02", "tags": ["a", "b"]}),
        (
            "country: NO\ndraft: yes\nfinal: true\nnothing: ~",
            {"country": "NO", "draft": "yes", "final": True, "nothing": None},
        ),
        (
            "isbn: 0123\ntime: 12:30\nversion: 3.10\nhash: 12e5",
            {"isbn": "0123", "time": "12:30", "version": "3.10", "hash": "12e5"},
        ),
        (
            "year: 2001\nversion: 3.9\nzero: 0\nless: -1.0",
            {"year": 2001, "version": 3.9, "zero": 0, "less": -1.0},
        ),
        (
            "big: 12345678901234567890\nsmall: 0.1234567890123456789",
            {"big": "1234567890" * 2, "small": "0.1234567890123456789"},
        ),
        ("log: {2026-01-02: begun, 3: [.inf, on]}", {"log": {"2026-01-02": "begun", "3": [".inf", "on"]}}),
        ("infinite: !!float .inf", {"infinite": "inf"}),
        ("no such day: 2026-13-45", {"no such day": "2026-13-45"}),
        ("# a comment\nkey: |\n  two\n  lines\n", {"key": "two\nlines\n"}),
    ],
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_front_matter_is_yaml_1_2_and_no_part_of_the_text(tmp_path, capsys, block, fields, line_end):
    document = read(tmp_path, f"---\n{block}\n---\n# Heading\n\ntext".replace("\n", line_end))
    assert (document.title, document.metadata) == ("Heading", fields)
    assert document.text == "# Heading\n\ntext".replace("\n", line_end)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "title", "left"),
    [
        ("---\ntitle: Front\n---\n# Heading", "Front", "# Heading"),
        ("--- \ntitle: Front\n---\t\n# Heading", "Front", "# Heading"),
        ("---\ntitle: Front\n...\n# Heading", "Front", "# Heading"),
        ("---\ntitle: Front\n---", "Front", ""),
        ("---\ntitle: 2024\n---\n# Heading", "2024", "# Heading"),
        ("---\ntitle: 3.10\n---\n# Heading", "3.10", "# Heading"),
        ("---\ntitle: ''\n---\n# Heading", "Heading", "# Heading"),
        ("---\n---\n# Heading", "Heading", "# Heading"),
    ],
)
def test_the_title_of_the_front_matter_comes_first(tmp_path, text, title, left):
    document = read(tmp_path, text)
    assert (document.title, document.text, document.metadata) == (title, left, {})


def test_a_title_that_is_a_list_stays_a_field(tmp_path):
    document = read(tmp_path, "---\ntitle: [a, b]\n---\n# Heading")
    assert (document.title, document.metadata) == ("Heading", {"title": ["a", "b"]})


@pytest.mark.parametrize(
    ("block", "title", "fields"),
    [
        ("title: Re: what we decided\nstatus: final", "Re: what we decided", {"status": "final"}),
        (
            "author: @joe\nyear: 2001\ntags: [a, b]",
            "Heading",
            {"author": "@joe", "year": 2001, "tags": ["a", "b"]},
        ),
        ("title: {{ x }}\ncount: 1", "{{ x }}", {"count": 1}),
        ("\tkey: 1\nother: 2", "Heading", {"other": 2}),
        ("in itself: &a [*a]", "Heading", {"in itself": "&a [*a]"}),
        ("date: !!timestamp 2026-01-02", "Heading", {"date": "!!timestamp 2026-01-02"}),
        ('half: "\\ud83d"\nkey: 1', "Heading", {"half": '"\\ud83d"', "key": 1}),
        ("number: !!int x", "Heading", {"number": "!!int x"}),
        ("deep: " + "[" * 5000, "Heading", {"deep": "[" * 5000}),
    ],
)
def test_broken_front_matter_is_said_and_keeps_its_lines(tmp_path, capsys, block, title, fields):
    text = f"---\n{block}\n---\n# Heading"
    document = read(tmp_path, text)
    assert (document.title, document.metadata, document.text) == (title, fields, text)
    assert (
        f"1 files have broken front matter, of which only lines `key: value` were read: {tmp_path}/page.md ("
        in (capsys.readouterr().err)
    )


def test_aliases_are_not_expanded():
    levels = ["a: &a [x,x,x,x,x,x,x,x,x]"]
    levels += [
        f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    started = time.perf_counter()
    front = read_front_matter("---\n" + "\n".join(levels) + "\n---\n")
    assert time.perf_counter() - started < 1
    assert front is not None
    assert front.problem == "line 3: the alias *a"
    assert len(str(front.fields)) < 500
