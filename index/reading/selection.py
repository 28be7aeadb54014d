"""Which files of a folder are read: patterns of the user, and .gitignore files."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from gpt_core.common.errors import InputError
from gpt_core.common.extras import extra


def selection(include: Sequence[str], exclude: Sequence[str], gitignore: bool) -> Callable[[Path, str], bool]:
    """A function that says whether a file is read, by its folder and its path relative to that.

    Args:
        include, exclude: patterns as in a .gitignore file.
        gitignore: whether .gitignore files count, as in git: of several patterns that match, the last one of the
            deepest folder decides, and what is in a folder that is left out is left out.

    Raises:
        InputError: for a malformed pattern.
    """
    if not (include or exclude or gitignore):
        return lambda folder, name: True
    included, excluded = _patterns(include), _patterns(exclude)
    is_ignored = cache(_is_ignored)

    def wanted(folder: Path, name: str) -> bool:
        if (include and not included.match_file(name)) or excluded.match_file(name):
            return False
        path = PurePosixPath(name)
        above = [part for part in path.parents if part.name]
        return not gitignore or not (
            any(is_ignored(folder, part, True) for part in above) or is_ignored(folder, path, False)
        )

    return wanted


def _is_ignored(root: Path, path: PurePosixPath, is_folder: bool) -> bool:
    """Whether the .gitignore files of `root` and of the folders above `path` leave that out."""
    decision = False
    for parent in reversed(path.parents):  # from `root` down
        relative = path.relative_to(parent)
        for line, pattern in _ignored_in(root / parent, is_folder):
            # A pattern of the library also matches what is below a folder that it matches; git decides for the folder.
            is_below = (
                relative.parent.name and not line.endswith("/**") and pattern.match_file(str(relative.parent))
            )
            if pattern.match_file(str(relative)) and not is_below:
                decision = pattern.include
    return decision


@cache
def _ignored_in(folder: Path, folders: bool) -> list[tuple[str, Any]]:
    """The patterns of a folder's .gitignore file for files below it, or for folders, each with its line."""
    file = folder / ".gitignore"
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    # A folder is checked by its name, which a pattern for folders only, such as build/, does not match.
    lines = [line.removesuffix("/") if folders else line for line in map(str.rstrip, lines) if line]
    pairs = zip(lines, _patterns(lines).patterns, strict=True)
    return [(line, pattern) for line, pattern in pairs if pattern.include is not None]


def _patterns(lines: Sequence[str]) -> Any:
    with extra("documents"):
        from pathspec import GitIgnoreSpec
    try:
        return GitIgnoreSpec.from_lines(lines)
    except ValueError as error:
        raise InputError(f"{', '.join(lines)} cannot be read as patterns of files: {error}") from None
