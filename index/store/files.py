"""The files that documents were read from: their names, and which of their documents are left behind."""

import os
import sqlite3
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from index.reading.source_files import Below, FoundFiles, SourceFile, is_stream, name_files, source_of
from index.store.store import Store

SETTLED = 3.0  # seconds; some file systems keep times in steps of two seconds


class FileDocument(NamedTuple):
    """A document that was read from a file.

    Attributes:
        id: the document's id.
        source: real path of the file.
        place: where the file was found; it differs from `source` where links lead to the file.
    """

    id: str
    source: str
    place: str

    def is_in(self, paths: Below) -> bool:
        """Whether the file is one of `paths`, or in one of these folders."""
        return self.place in paths or (self.source != self.place and self.source in paths)


class FileState(NamedTuple):
    """What tells whether a file is written again.

    Attributes:
        text: its size and times, and how it is read; "gone" for a file that is not there, "" for a stream.
        is_settled: whether the file was written so long ago that the next change gives it another time.
    """

    text: str
    is_settled: bool


class Unchanged(NamedTuple):
    """Files that need no reading.

    Attributes:
        documents: ids of the documents of files that were read, by source.
        unread: why files could not be read, by source.
    """

    documents: dict[str, list[str]]
    unread: dict[str, str]


class Files:
    """The files that an index's documents were read from.

    A document belongs to its file, however the file is spelled: the store keeps the real path of each file with the
    name that the file has in this index, and the folders that were given.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def name(
        self, found: FoundFiles, row_ids: Collection[str] = (), hashes: Mapping[str, str] | None = None
    ) -> tuple[dict[str, str], list[str]]:
        """Give each file its name in this index, and remember the names and the folders; see `choose_names`.

        A file that was moved and is otherwise the same takes over the document of its name.

        Args:
            found: the files.
            row_ids: ids of the documents that are read from files of rows at the same time.
            hashes: content hashes of the text files' documents, by source.

        Returns:
            The names by source, and those new ones that are longer because another document had the shorter name.

        Raises:
            InputError: if another process is writing.
        """
        hashes = hashes or {}
        with self._store.lock(), self._store.write() as tx:
            names, longer = choose_names(tx, found, row_ids, hashes)
            for file in found.files:
                _remember(tx, file, names[file.source], hashes.get(file.source))
            tx.executemany(
                "INSERT OR IGNORE INTO roots VALUES (?)", [(root,) for root in sorted(found.roots)]
            )
        return names, longer

    def unchanged(self, states: Mapping[str, FileState]) -> Unchanged:
        """The files that are as they were when `remember` was called, and whose documents are all here.

        Args:
            states: the files' states, by source.
        """
        query = "SELECT id FROM documents WHERE source = ? ORDER BY number"
        found = Unchanged({}, {})
        with self._store.read() as tx:
            rows = tx.execute("SELECT source, state, problem FROM files WHERE state <> ''")
            known = {source: (state, problem) for source, state, problem in rows}
            for source, now in states.items():
                state, problem = known.get(source, ("", ""))
                ids = [doc_id for (doc_id,) in tx.execute(query, (source,))] if state else []
                if state != f"{now.text} {len(ids)}":
                    continue
                if problem:
                    found.unread[source] = problem
                else:
                    found.documents[source] = ids
        return found

    def remember(
        self, files: Sequence[SourceFile], states: Mapping[str, FileState], unread: Mapping[str, str]
    ) -> None:
        """Note that all documents of `files` are stored, so that `unchanged` finds them until a file is written again.

        Args:
            files: files that were read completely, or could not be read.
            states: their states before they were read, by source.
            unread: why files could not be read, by source.

        Raises:
            InputError: if another process is writing.
        """
        count = "SELECT count(*) FROM documents WHERE source = ?"
        with self._store.lock(), self._store.write() as tx:
            for file in files:
                (n,) = tx.execute(count, (file.source,)).fetchone()
                text, is_settled = states[file.source]
                row = (f"{text} {n}" if is_settled else "", unread.get(file.source, ""), file.source)
                tx.execute("UPDATE files SET state = ?, problem = ? WHERE source = ?", row)

    def documents(self) -> list[FileDocument]:
        """The documents of files that `name` has named, in insertion order; not those that a caller added."""
        with self._store.read() as tx:
            rows = tx.execute("""
                SELECT d.id, d.source, f.place FROM documents AS d JOIN files AS f ON f.source = d.source
                ORDER BY d.number""")
            return [FileDocument(*row) for row in rows]

    def documents_below(self, paths: Sequence[str | Path]) -> list[FileDocument]:
        """The documents of the files and folders `paths`, which need not exist."""
        below = Below(map(source_of, paths))
        return [one for one in self.documents() if one.is_in(below)]


def choose_names(
    tx: sqlite3.Connection | None,
    found: FoundFiles,
    row_ids: Collection[str],
    hashes: Mapping[str, str],
    deleted: Collection[str] = (),
) -> tuple[dict[str, str], list[str]]:
    """Choose a name for each file; see `name_files`.

    A file has the name that it was given when it was first read. A new one is named relative to the outermost folder
    that was ever given and that it is below. A name is free unless it is the id of a document of another file. A file
    that was moved and is otherwise the same takes over the name that it had.

    Args:
        tx: a transaction of the index; None: there is no index yet.
        found: the files.
        row_ids: ids of the documents that are read from files of rows at the same time.
        hashes: content hashes of the text files' documents, by source.
        deleted: sources whose documents are taken for deleted.

    Returns:
        The names by source, and those new ones that are longer because another document had the shorter name.
    """
    known = dict(tx.execute("SELECT source, name FROM files")) if tx else {}
    roots = {path for (path,) in tx.execute("SELECT path FROM roots")} if tx else set()

    def is_free(file: SourceFile, name: str) -> bool:
        if name in row_ids and not file.has_rows:
            return False
        owner, content = _owner(tx, file, name) if tx else (None, "")
        if owner is None or owner == file.source or owner in deleted:
            return True
        moved = owner != "" and not is_stream(owner) and is_gone(owner)
        return moved and (file.has_rows or content == hashes.get(file.source))

    return name_files(found.files, roots | found.roots, known, is_free)


def states(files: Sequence[SourceFile], how: str) -> dict[str, FileState]:
    """The states of files, which are read as `how` says, by source."""
    return {file.source: _state(file, how) for file in files}


def _state(file: SourceFile, how: str) -> FileState:
    if is_stream(file.source):
        return FileState("", False)
    try:
        status = os.stat(file.source)
    except OSError:
        return FileState("gone", False)
    text = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {how}"
    return FileState(text, time.time() - status.st_ctime > SETTLED)


def is_gone(place: str) -> bool:
    """Whether there is no such file; False if a missing permission hides it."""
    try:
        os.lstat(place)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _owner(tx: sqlite3.Connection, file: SourceFile, name: str) -> tuple[str | None, str]:
    """The file whose documents would be confused with those of `file` under this name, and their content hash."""
    if file.has_rows:
        query = (
            "SELECT source, '' FROM files AS f WHERE name = ? AND source IN (SELECT source FROM documents)"
        )
        # A file that has moved may be known by the same name as its successor, which then owns it.
        rows = tx.execute(query, (name,)).fetchall()
        return next((row for row in rows if row[0] == file.source), rows[0] if rows else (None, ""))
    return tx.execute("SELECT source, hash FROM documents WHERE id = ?", (name,)).fetchone() or (None, "")


def _remember(tx: sqlite3.Connection, file: SourceFile, name: str, content: str | None) -> None:
    # A file that is given by itself keeps the place at which a folder has it.
    tx.execute(
        """INSERT INTO files (source, place, name) VALUES (?1, ?2, ?3) ON CONFLICT (source) DO UPDATE SET
           name = ?3, place = CASE ?4 WHEN 1 THEN place ELSE ?2 END""",
        (file.source, file.place, name, int(file.given)),
    )
    # The document of the same content is this file's before it was moved. (Rows are moved when they are written.)
    tx.execute("UPDATE documents SET source = ? WHERE id = ? AND hash = ?", (file.source, name, content))
