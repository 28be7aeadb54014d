"""Lists the input files of a command."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gpt_core.common.errors import InputError


def list_files(
    paths: Sequence[str | Path],
    kinds: tuple[str, ...],
    choose: Callable[[list[str]], list[str]] = lambda names: names,
) -> tuple[list[tuple[Path, str]], list[Path]]:
    """List the files to read, and the files in folders whose format is not supported.

    Folders are searched recursively in sorted order, without hidden files and folders.

    Args:
        paths: files and folders.
        kinds: endings of the names of supported files.
        choose: selects from the sorted names of the files in one folder.

    Returns:
        (path, path relative to the given folder) of each file to read, and the paths of the files that are skipped.

    Raises:
        InputError: for a path that is missing or not supported, or a folder without supported files.
    """
    expected = ", ".join(kinds)
    files: list[tuple[Path, str]] = []
    skipped: list[Path] = []
    for root in map(Path, paths):
        if root.is_dir():
            below = list(_walk(root, choose))
            readable = [path for path in below if path.name.endswith(kinds)]
            if not readable:
                raise InputError(f"{root} has no supported file; expected one of {expected}.")
            files += [(path, path.relative_to(root).as_posix()) for path in readable]
            skipped += [path for path in below if not path.name.endswith(kinds)]
        elif not root.exists():
            raise InputError(f"{root} does not exist; expected a file or a folder.")
        elif not root.name.endswith(kinds):
            raise InputError(f"{root} is not a supported file; expected one of {expected}, or a folder.")
        else:
            files.append((root, root.name))
    return files, skipped


def _walk(root: Path, choose: Callable[[list[str]], list[str]]) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        names = choose(sorted(name for name in names if not name.startswith(".")))
        yield from (Path(folder, name) for name in names)
