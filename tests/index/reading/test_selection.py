"""Patterns and .gitignore files select among the files of folders."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_core.common.errors import InputError
from index.reading.source_files import find_files


def tree(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")


def found(folder: Path, **options: object) -> set[str]:
    return {file.path.relative_to(folder).as_posix() for file in find_files([folder], **options).files}


def test_include_and_exclude(tmp_path):
    tree(tmp_path, "a.txt", "b.md", "docs/c.md", "docs/old/d.md", "docs/e.png")
    assert found(tmp_path, include=("*.md",)) == {"b.md", "docs/c.md", "docs/old/d.md"}
    assert found(tmp_path, include=("docs/",), exclude=("old/",)) == {"docs/c.md"}
    assert found(tmp_path, include=("/*.md", "*.txt")) == {"a.txt", "b.md"}
    assert found(tmp_path, exclude=("**/*.md",)) == {"a.txt"}
    assert [path.name for path in find_files([tmp_path], exclude=("*.png",)).listing.skipped] == []
    with pytest.raises(InputError, match="has no supported file"):
        found(tmp_path, include=("*.pdf",))


def test_a_given_file_is_read_whatever_the_patterns(tmp_path):
    tree(tmp_path, "a.txt")
    assert [file.path for file in find_files([tmp_path / "a.txt"], exclude=("*",)).files] == [
        tmp_path / "a.txt"
    ]


def test_a_malformed_pattern_is_refused(tmp_path):
    tree(tmp_path, "a.txt")
    with pytest.raises(InputError, match="! cannot be read as patterns of files"):
        found(tmp_path, include=("!",))


NAMES = ["a.txt", "b.md", "build/a.txt", "build/deep/b.md", "src/a.txt", "src/build/b.md", "src/keep/a.txt"]
PATTERNS = [
    "*.txt",
    "build/",
    "/build",
    "!a.txt",
    "src/**",
    "!keep",
    "# comment",
    "",
    "b.md",
    "deep",
    "**/keep",
]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(PATTERNS), max_size=4), st.lists(st.sampled_from(PATTERNS), max_size=3))
def test_gitignore_files_count_as_in_git(tmp_path_factory, above, below):
    folder = tmp_path_factory.mktemp("tree")
    tree(folder, "kept.md.txt.rst", *NAMES)
    (folder / ".gitignore").write_text("\n".join(above))
    (folder / "src" / ".gitignore").write_text("\n".join(below))
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    listed = subprocess.run(
        ["git", "-C", str(folder), "ls-files", "--others", "--exclude-standard"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert found(folder, gitignore=True) == {name for name in listed if not name.endswith(".gitignore")}
