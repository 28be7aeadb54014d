"""Find the files that documents are read from, and name their documents."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path, PurePath

from gpt_core.common.jsonl import JSONL
from gpt_core.common.list_files import Listing, has_ending, list_files
from index.reading.extract import EXTRACTED
from index.reading.formats.dataset import DATASETS, Dataset
from index.reading.formats.stdin import check_stdin
from index.reading.formats.tables import TABLES
from index.reading.selection import selection

STDIN = "-"
ROWS = (*JSONL, *TABLES)
KINDS = (*ROWS, *EXTRACTED)  # endings of the names of the files that are read


@dataclass(frozen=True)
class SourceFile:
    """A file to read.

    Attributes:
        path: the file as it was found, in the spelling of the input.
        source: its real path, by which the file is recognised however it is spelled; see `source_of`.
        place: the real path of the folder that was given, and the path below that folder; it differs from `source`
            where the path below the folder has a link.
        given: whether the file itself was given, not a folder that has it.
    """

    path: Path
    source: str
    place: str
    given: bool

    @property
    def has_rows(self) -> bool:
        """Whether the rows of the file are documents; otherwise the file is one."""
        return is_stream(self.source) or has_ending(self.path, ROWS)

    @property
    def kind(self) -> str:
        """The ending of the file's name, such as .pdf or .jsonl.gz, or "datasets", or "standard input"."""
        if is_stream(self.source):
            return self.path.name if self.source == STDIN else DATASETS.rstrip(":")
        stem, ending = os.path.splitext(self.path.name.lower())
        return os.path.splitext(stem)[1] + ending if ending in (".gz", ".xz") else ending


class Below:
    """The files and folders of `paths`, real paths, with all that is below them."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = set(paths)
        self._parents: dict[str, bool] = {}
        self._above = {str(parent) for path in self._paths for parent in PurePath(path).parents}

    def leads_to(self, folder: str) -> bool:
        """Whether one of the paths is `folder`, above it, or below it."""
        return folder in self._above or folder in self

    def __contains__(self, path: str) -> bool:
        if path in self._paths:
            return True
        if is_stream(path):
            return False
        parent = os.path.dirname(path)
        if parent not in self._parents:
            self._parents[parent] = parent != path and parent in self
        return self._parents[parent]


@dataclass(frozen=True)
class FoundFiles:
    """The files to read.

    Attributes:
        files: the files, in reading order, each once.
        roots: real paths of the folders that were given.
        listing: names what was passed over.
    """

    files: list[SourceFile]
    roots: set[str]
    listing: Listing


def is_stream(source: str) -> bool:
    """Whether an input is no file or folder, but standard input or a dataset of the library `datasets`."""
    return source == STDIN or source.startswith(DATASETS)


def source_of(path: str | Path) -> str:
    """What an input is recognised by, however it is spelled: a real path, "-", or a dataset by name or real path."""
    text = str(path)
    if text.startswith(DATASETS):
        return DATASETS + str(Dataset.parse(text))
    return text if text == STDIN else os.path.realpath(path)


def find_files(
    paths: Sequence[str | Path],
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    gitignore: bool = False,
    *,
    outside: str | Path | None = None,
    only: Below | None = None,
) -> FoundFiles:
    """Find the files to read in files and folders.

    Folders are searched recursively in sorted order, without hidden entries; files of unsupported types are skipped. Of
    a BEIR folder (one with a corpus and queries) only the corpus is read. A file to which several paths lead is read
    once.

    Args:
        paths: files and folders, "-" for standard input, and "datasets:…" for a dataset of the library `datasets`.
        include, exclude: patterns as in a .gitignore file, for paths below the folders; if `include` is not empty, only
            files that it matches are read, and never those that `exclude` matches.
        gitignore: leave out what the .gitignore files in the folders say.
        outside: a folder that is not searched, such as that of the index.
        only: find only these files; then `paths` need not exist, nor have files.

    Raises:
        InputError: for a path that is missing, not supported or unreadable, a folder without readable files, or a
            malformed pattern.
    """
    selected = selection(include, exclude, gitignore)
    left_out = Below([os.path.realpath(outside)] if outside else [])
    real = cache(os.path.realpath)

    def wanted(folder: Path, name: str) -> bool:
        place = os.path.join(real(folder), name)
        return place not in left_out and (only is None or place in only) and selected(folder, name)

    streams = {source_of(path): Path(path) for path in paths if is_stream(str(path))}
    paths = [path for path in paths if not is_stream(str(path))]

    def enters(folder: Path, name: str) -> bool:
        place = os.path.join(real(folder), name)
        return place not in left_out and (only is None or only.leads_to(place))

    listing = list_files(paths, KINDS, _without_queries, wanted, required=only is None, enters=enters)
    given = {Path(path) for path in paths}
    files = []
    for path, name in listing.files:
        folder = path.parents[len(PurePath(name).parts) - 1]
        place = os.path.join(os.path.realpath(folder), name)
        file = SourceFile(path, os.path.realpath(path), place, path in given)
        if only is not None and place not in only:  # a given file
            continue
        try:
            (file.source + file.place).encode()
            files.append(file)
        except UnicodeEncodeError:
            listing.unreadable.append(f"{path} (its path is not UTF-8)")
    for source, stream in streams.items():
        if source == STDIN:
            check_stdin()
            files.append(SourceFile(Path("standard input"), source, "stdin", given=True))
        else:
            files.append(SourceFile(stream, source, source, given=True))
    return FoundFiles(files, {os.path.realpath(path) for path in given if path.is_dir()}, listing)


def _without_queries(names: list[str]) -> list[str]:
    stems = {name.split(".")[0] for name in names if has_ending(Path(name), JSONL)}
    return [name for name in names if name.startswith("corpus.")] if {"corpus", "queries"} <= stems else names


def name_files(
    files: Iterable[SourceFile],
    roots: Iterable[str],
    known: Mapping[str, str],
    is_free: Callable[[SourceFile, str], bool],
) -> tuple[dict[str, str], list[str]]:
    """Choose a name for each file: the id of its document, or the beginning of its rows' ids.

    A known file keeps its name if that is free. A new one is named by its path relative to the outermost of `roots`
    that it is below, or by its file name if it is below none of them. If the name is not free, parts of the root's
    path are put in front until it is.

    Args:
        files: the files.
        roots: real paths of folders.
        known: names by source.
        is_free: whether a file may take a name; called with names that no file before has taken.

    Returns:
        The names by source, and those new names that are longer because the first one was not free.
    """
    names: dict[str, str] = {}
    longer = []
    taken: set[str] = set()
    outermost = sorted(roots, key=len)
    for file in files:
        first, *others = _candidates(file.place, outermost)
        old = known.get(file.source)
        for name in chain([old] if old else [], [first], others):
            if name not in taken and is_free(file, name):
                break
        if name not in (old, first):
            longer.append(name)
        names[file.source] = name
        taken.add(name)
    return names, longer


def _candidates(place: str, roots: Iterable[str]) -> Iterator[str]:
    """The path relative to the root, then with more and more of the root's path in front, at last the whole path."""
    path = PurePath(place)
    root = next((PurePath(root) for root in roots if path.is_relative_to(root)), path.parent)
    below = path.relative_to(root).as_posix()
    yield below
    for n in range(1, len(root.parts)):
        yield "/".join((*root.parts[-n:], below))
    yield path.as_posix()
