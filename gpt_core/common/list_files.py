"""Lists the input files of a command."""

import os
import re
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from gpt_core.common.errors import InputError
from gpt_core.common.terminal import printable

MOST_NAMED = 5  # paths in one line of output; further ones are only counted
NOT_UTF8 = re.compile("[\udc80-\udcff]")  # bytes of a file name that are not UTF-8, as Python decodes them


class Listing(NamedTuple):
    """The files to read, and what is passed over in the given folders.

    Attributes:
        files: each file to read, and its path relative to the given folder (with "/"), or its name if it was given.
        skipped: files of unsupported types.
        unreadable: files and folders that cannot be read, each with the reason in parentheses.
    """

    files: list[tuple[Path, str]]
    skipped: list[Path]
    unreadable: list[str]

    def report(self) -> None:
        """Name on stderr what is passed over, in one line for each of the two kinds."""
        kinds: dict[str, Sequence[object]] = {
            "files of other types": self.skipped,
            "files or folders that cannot be read": self.unreadable,
        }
        for kind, names in kinds.items():
            if names:
                shown = ", ".join(map(str, names[:MOST_NAMED]))
                more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
                line = os.fsencode(f"skipped {len(names):,} {kind}: {shown}{more}")
                print(printable(line.decode("utf-8", "backslashreplace")), file=sys.stderr)


def has_ending(path: Path, kinds: tuple[str, ...]) -> bool:
    """Whether the file's name ends in one of `kinds` (in lower case), whatever the case of its letters."""
    return path.name.lower().endswith(kinds)


def list_files(
    paths: Sequence[str | Path],
    kinds: tuple[str, ...],
    choose: Callable[[list[str]], list[str]] = lambda names: names,
    wanted: Callable[[Path, str], bool] = lambda root, name: True,
    required: bool = True,
    enters: Callable[[Path, str], bool] = lambda root, name: True,
) -> Listing:
    """List the files to read, and what is passed over in folders.

    Folders are searched recursively in sorted order, without hidden files and folders. Symbolic links are followed;
    those to folders come last. A file to which several paths lead is listed once, by its own name if it was found under
    that name, else by a link's.

    Args:
        paths: files and folders.
        kinds: endings of the names of supported files, in lower case.
        choose: selects from the sorted names of the files in one folder.
        wanted: whether a file in a given folder is to be listed at all, by the folder and the path relative to it.
        required: whether each of `paths` must exist, and each folder have a supported file that can be read.
        enters: whether a folder below a given one is searched at all, by the given one and the path relative to it.

    Raises:
        InputError: for one of `paths` that is not supported or unreadable, or that is not as `required`.
    """
    expected = ", ".join(kinds)
    files: dict[str, tuple[Path, str]] = {}  # by real path
    skipped: list[Path] = []
    unreadable: list[str] = []
    for root in map(Path, paths):
        if root.is_dir():
            n_readable, n_unreadable = 0, len(unreadable)
            for path in _walk(root, choose, enters, unreadable):
                name = path.relative_to(root).as_posix()
                if not wanted(root, name):
                    continue
                supported = has_ending(path, kinds)
                reason = _unreadable(path) if supported or path.is_symlink() else None
                if reason:
                    unreadable.append(f"{path} ({reason})")
                elif supported:
                    _add(files, path, name)
                    n_readable += 1
                else:
                    skipped.append(path)
            if not n_readable and required:
                reasons = ", ".join(unreadable[n_unreadable:][:MOST_NAMED])
                also = f" Unreadable: {reasons}." if reasons else ""
                raise InputError(f"{root} has no supported file; expected one of {expected}.{also}")
        elif not os.path.lexists(root):
            if not required:
                continue
            raise InputError(f"{root} does not exist; expected a file or a folder.")
        elif not has_ending(root, kinds):
            raise InputError(f"{root} is not a supported file; expected one of {expected}, or a folder.")
        elif reason := _unreadable(root):
            raise InputError(f"{root} cannot be read: {reason}.")
        else:
            _add(files, root, root.name)
    return Listing(list(files.values()), skipped, unreadable)


def _add(files: dict[str, tuple[Path, str]], path: Path, name: str) -> None:
    real = os.path.realpath(path)
    if real not in files or (files[real][0].is_symlink() and not path.is_symlink()):
        files[real] = path, name


def _unreadable(path: Path) -> str | None:
    """Why the file cannot be read; None if it can."""
    if NOT_UTF8.search(path.name):
        return "its name is not UTF-8"
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return "not a regular file"  # opening a named pipe would wait for a writer
        with path.open("rb"):
            return None
    except FileNotFoundError:
        return "a broken link"
    except OSError as error:
        return error.strerror or str(error)


def _walk(
    root: Path,
    choose: Callable[[list[str]], list[str]],
    enters: Callable[[Path, str], bool],
    unreadable: list[str],
) -> Iterator[Path]:
    """The visible files below `root`, each folder once; adds the folders that cannot be read to `unreadable`."""

    def note(error: OSError) -> None:
        if error.filename == str(root):
            raise InputError(f"{root} cannot be read: {error.strerror}.")
        unreadable.append(f"{error.filename} ({error.strerror})")

    seen: set[str] = set()  # real paths
    starts = [root]
    for start in starts:  # `starts` grows by the links to folders
        for folder, subfolders, names in os.walk(start, onerror=note):
            real = os.path.realpath(folder)
            if real in seen:
                subfolders.clear()
                continue
            seen.add(real)
            here = [Path(folder, name) for name in sorted(subfolders) if not name.startswith(".")]
            unreadable += [f"{path} (its name is not UTF-8)" for path in here if NOT_UTF8.search(path.name)]
            here = [path for path in here if not NOT_UTF8.search(path.name)]
            here = [path for path in here if enters(root, path.relative_to(root).as_posix())]
            subfolders[:] = [path.name for path in here if not path.is_symlink()]
            starts += [path for path in here if path.is_symlink()]
            names = choose(sorted(name for name in names if not name.startswith(".")))
            yield from (Path(folder, name) for name in names)
