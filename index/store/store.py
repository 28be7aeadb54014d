"""The truth: one SQLite file with documents, passages, metadata, full text and vectors.

All of a document changes in one transaction. One counter, `sequence`, numbers every change: a passage that is added
(its number is its name within the store, and never given twice) and a passage that is deleted (a row of `tombstones`).
Whoever has seen everything up to a sequence number can therefore ask for what came after it.
"""

import hashlib
import json
import os
import sqlite3
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from embed.data.vectors import Vectors
from embed.network.corpus_map import CorpusMap
from embed.text.terms import index_text
from gpt_core.common.errors import InputError
from gpt_core.common.files import atomic_folder
from index.reading.document import Document
from index.reading.passages import Passage, full_text
from index.store.schema import FORMAT, NOT_OURS, SCHEMA
from index.store.settings import Settings

FILE = "index.sqlite"
Numbers = NDArray[np.int64]


class Store:
    """One index's SQLite file: any number of threads and processes read, one writes.

    Raises:
        InputError: if `folder` holds no index, or one of a later version.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._path = self.folder / FILE
        self._idle: deque[sqlite3.Connection] = deque()
        self._closed = False
        if not self._path.is_file():
            raise InputError(f"{folder} holds no index (no {FILE}); make one with scripts/build_index.py.")
        try:
            with self.read() as tx:
                version = tx.execute("PRAGMA user_version").fetchone()[0]
                if version != FORMAT:
                    raise InputError(
                        f"{self._path} has format {version}; this program reads format {FORMAT}."
                    )
                self.settings = Settings.from_json(_get(tx, "settings"))
        except (sqlite3.DatabaseError, OSError) as error:
            hint = "" if os.access(self.folder, os.W_OK) else " (readers, too, need to write to its folder)"
            raise InputError(f"{self._path} is no index that can be read: {error}{hint}.") from None

    @classmethod
    def create(cls, folder: str | Path, settings: Settings) -> "Store":
        """Make an empty store in a new folder: there is a whole one or none.

        Raises:
            InputError: if the folder exists and holds anything.
        """
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            what = "holds an index" if (folder / FILE).exists() else "is there"
            raise InputError(f"{folder} {what} already; give a new folder.")
        if folder.resolve() == Path.cwd():  # it would be replaced under our feet
            raise InputError(f"{str(folder)!r} is the current folder; give a new folder for the index.")
        with (
            _blame(folder / FILE),
            atomic_folder(folder) as temporary,
            closing(sqlite3.connect(temporary / FILE)) as connection,
        ):
            connection.execute("PRAGMA page_size = 16384")  # several vectors to a page
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT")
            with connection:
                _set(connection, "settings", settings.to_json())
                _set(connection, "sequence", 0)
                _set_corpus_map(connection, CorpusMap(), 0)
        return cls(folder)

    def close(self) -> None:
        """Close all connections, those in use as soon as their transaction ends."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A transaction for reading: from its first query on it sees one state of the store, whatever is written."""
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction for writing, on the disk when the block ends, undone when it fails."""
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        # A connection serves one transaction at a time, so each concurrent one has its own.
        connection = self._idle.pop() if self._idle else self._connect()
        try:
            with _blame(self._path):
                connection.execute(begin)
                yield connection
                connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if self._closed:
                connection.close()
            else:
                self._idle.append(connection)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self._path.absolute().as_uri()}?mode=rw",
            uri=True,
            timeout=60,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.execute("PRAGMA synchronous = FULL")  # a commit survives a power cut, too
        connection.execute("PRAGMA foreign_keys = ON")
        return connection

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the one writer. The system lets go of the lock when the process ends, however it ends.

        Raises:
            InputError: if somebody else is writing.
        """
        lock = FileLock(self.folder / "writer.lock", blocking=False, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            message = f"Another process is writing to {self.folder}; wait until it has ended, or stop it."
            raise InputError(message) from None
        try:
            yield
        finally:
            lock.release()

    # What follows works within a transaction of this store.

    def put(
        self, tx: sqlite3.Connection, document: Document, passages: Sequence[Passage], vectors: Vectors
    ) -> bool:
        """Write a document with its passages and their vectors (n, dimension); True if it replaced one of its id."""
        replaced = self.remove(tx, document.id)
        columns = (document.title, document.text, document.metadata_json, document.hash, document.source)
        insert = "INSERT INTO documents (id, title, text, metadata, hash, source) VALUES (?, ?, ?, ?, ?, ?)"
        owner = tx.execute(insert, (document.id, *columns)).lastrowid
        first = _count_up(tx, len(passages)) + 1
        numbers = range(first, first + len(passages))
        rows = zip(numbers, passages, vectors.astype(self.settings.dtype), strict=True)
        for number, passage, vector in rows:
            row = (number, owner, passage.start, passage.end, passage.text)
            tx.execute("INSERT INTO passages VALUES (?, ?, ?, ?, ?)", row)
            tx.execute("INSERT INTO vectors VALUES (?, ?)", (number, vector.tobytes()))
            terms = index_text(full_text(document.title, passage.text))
            tx.execute("INSERT INTO lexical (rowid, terms) VALUES (?, ?)", (number, terms))
        return replaced

    def remove(self, tx: sqlite3.Connection, doc_id: str) -> bool:
        """Delete a document with everything that belongs to it; False if there is none of that id."""
        found = tx.execute("SELECT number FROM documents WHERE id = ?", (doc_id,)).fetchone()
        if not found:
            return False
        numbers = tx.execute("SELECT number FROM passages WHERE document = ?", found).fetchall()
        first = _count_up(tx, len(numbers)) + 1
        tombstones = [(first + i, number) for i, (number,) in enumerate(numbers)]
        tx.executemany("INSERT INTO tombstones VALUES (?, ?)", tombstones)
        tx.executemany("DELETE FROM lexical WHERE rowid = ?", numbers)
        tx.executemany("DELETE FROM vectors WHERE number = ?", numbers)
        tx.execute("DELETE FROM passages WHERE document = ?", found)
        tx.execute("DELETE FROM documents WHERE number = ?", found)
        return True

    def sequence(self, tx: sqlite3.Connection) -> int:
        """The number of the last change."""
        return _get(tx, "sequence")

    def document_hash(self, tx: sqlite3.Connection, doc_id: str) -> str | None:
        """The content hash of a document, or None if there is none of that id."""
        found = tx.execute("SELECT hash FROM documents WHERE id = ?", (doc_id,)).fetchone()
        return found[0] if found else None

    def document(self, tx: sqlite3.Connection, doc_id: str) -> Document | None:
        """A document, or None if there is none of that id."""
        columns = "id, text, title, metadata, source"
        found = tx.execute(f"SELECT {columns} FROM documents WHERE id = ?", (doc_id,)).fetchone()
        if not found:
            return None
        doc_id, text, title, metadata, source = found
        return Document(doc_id, text, title, json.loads(metadata), source)

    def document_ids(self, tx: sqlite3.Connection) -> list[str]:
        """All ids, in the order in which the documents came."""
        return [row[0] for row in tx.execute("SELECT id FROM documents ORDER BY number")]

    def count(self, tx: sqlite3.Connection, table: Literal["documents", "passages"]) -> int:
        """How many documents or passages there are."""
        return tx.execute(f"SELECT count(*) FROM {table}").fetchone()[0]

    def vectors_after(self, tx: sqlite3.Connection, sequence: int) -> tuple[Numbers, Vectors]:
        """The passages that were added after `sequence`: numbers (n,), rising, and vectors (n, dimension) as stored."""
        query = "SELECT number, vector FROM vectors WHERE number > ? ORDER BY number"
        numbers, parts, block = [], [], 4096  # blocks: neither all blobs nor all rows exist twice
        cursor = tx.execute(query, (sequence,))
        while rows := cursor.fetchmany(block):
            numbers += [number for number, _ in rows]
            joined = np.frombuffer(b"".join(blob for _, blob in rows), dtype=self.settings.dtype)
            parts.append(joined.astype(np.float32).reshape(len(rows), self.settings.dimension))
        empty = np.empty((0, self.settings.dimension), dtype=np.float32)
        return np.array(numbers, dtype=np.int64), np.concatenate(parts) if parts else empty

    def deleted_after(self, tx: sqlite3.Connection, sequence: int) -> Numbers:
        """The numbers of the passages that were deleted after `sequence`."""
        rows = tx.execute("SELECT passage FROM tombstones WHERE sequence > ?", (sequence,))
        return np.array([number for (number,) in rows], dtype=np.int64)

    def lexical_scores(self, tx: sqlite3.Connection, expression: str) -> tuple[Numbers, NDArray[np.float32]]:
        """All passages that match an FTS5 expression: numbers (n,), rising, and their BM25 (n,), higher is better."""
        query = "SELECT rowid, -bm25(lexical) FROM lexical WHERE lexical MATCH ? ORDER BY rowid"
        rows = np.array(tx.execute(query, (expression,)).fetchall(), dtype=np.float64).reshape(-1, 2)
        return rows[:, 0].astype(np.int64), rows[:, 1].astype(np.float32)

    def passages(self, tx: sqlite3.Connection, numbers: Sequence[int]) -> dict[int, dict[str, Any]]:
        """What there is to say about each of the passages, by number."""
        query = """
            SELECT p.number, d.id AS doc_id, d.title, p.text, p.start, p.stop AS end, d.metadata
            FROM passages AS p JOIN documents AS d ON d.number = p.document
            WHERE p.number IN (SELECT value FROM json_each(?))"""
        cursor = tx.execute(query, (json.dumps(list(numbers)),))
        names = [column[0] for column in cursor.description]
        return {row[0]: dict(zip(names[1:], row[1:], strict=True)) for row in cursor}

    def corpus_map(self, tx: sqlite3.Connection) -> CorpusMap:
        """The corpus map; the identity until one was fitted."""
        return CorpusMap.from_bytes(_get(tx, "corpus_map"))

    def map_hash(self, tx: sqlite3.Connection) -> str:
        """sha256 of the corpus map's bytes: its identity."""
        return _get(tx, "map_hash")

    def map_passages(self, tx: sqlite3.Connection) -> int:
        """How many passages there were when the map was fitted; 0 before that."""
        return _get(tx, "map_passages")

    def put_corpus_map(self, tx: sqlite3.Connection, corpus_map: CorpusMap, n_passages: int) -> None:
        """Keep a map that was fitted on `n_passages` passages."""
        _set_corpus_map(tx, corpus_map, n_passages)


@contextmanager
def _blame(path: Path) -> Iterator[None]:
    """Raise OSError, naming the file, for what the machine does to us."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        # Python's own complaints, such as a closed connection, have no code.
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in NOT_OURS:
            raise OSError(f"{path}: {error}") from error
        raise


def _get(tx: sqlite3.Connection, key: str) -> Any:
    return tx.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()[0]


def _set(tx: sqlite3.Connection, key: str, value: str | int | bytes) -> None:
    tx.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))


def _count_up(tx: sqlite3.Connection, n: int) -> int:
    """Take the next `n` sequence numbers; returns the last one before them."""
    last = _get(tx, "sequence")
    _set(tx, "sequence", last + n)
    return last


def _set_corpus_map(tx: sqlite3.Connection, corpus_map: CorpusMap, n_passages: int) -> None:
    data = corpus_map.to_bytes()
    _set(tx, "corpus_map", data)
    _set(tx, "map_hash", hashlib.sha256(data).hexdigest())
    _set(tx, "map_passages", n_passages)
