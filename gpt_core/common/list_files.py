"""The files that a command's inputs name."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gpt_core.common.errors import InputError


def list_files(
    paths: Sequence[str | Path],
    kinds: tuple[str, ...],
    choose: Callable[[list[str]], list[str]] = lambda names: names,
) -> tuple[list[tuple[Path, str]], list[Path]]:
    """The files to read, each with its path below what was given, and the files in folders that are of no known kind.

    Folders are walked to the bottom in sorted order, without hidden entries.

    Args:
        paths: files, and folders of such.
        kinds: how the names of files that can be read end.
        choose: which of the names in one folder count at all.

    Raises:
        InputError: for a path that is missing or of no known kind, or a folder in which there is nothing to read.
    """
    expected = ", ".join(kinds)
    files: list[tuple[Path, str]] = []
    skipped: list[Path] = []
    for root in map(Path, paths):
        if root.is_dir():
            below = list(_walk(root, choose))
            readable = [path for path in below if path.name.endswith(kinds)]
            if not readable:
                raise InputError(f"{root} holds no file that can be read; expected one of {expected}.")
            files += [(path, path.relative_to(root).as_posix()) for path in readable]
            skipped += [path for path in below if not path.name.endswith(kinds)]
        elif not root.exists():
            raise InputError(f"{root} does not exist; expected a file or a folder.")
        elif not root.name.endswith(kinds):
            raise InputError(
                f"{root} is of no kind that can be read; expected one of {expected}, or a folder."
            )
        else:
            files.append((root, root.name))
    return files, skipped


def _walk(root: Path, choose: Callable[[list[str]], list[str]]) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        names = choose(sorted(name for name in names if not name.startswith(".")))
        yield from (Path(folder, name) for name in names)
