"""The source of truth of an index: one SQLite file with documents, passages, metadata, full text and vectors.

A document changes in one transaction. One counter, `sequence`, numbers every change: the addition of a passage (the
sequence number becomes the passage's id, `number`, and is never reused) and its deletion (a row of `tombstones`). A
reader that has processed all changes up to a sequence number can therefore query the changes after it.
"""

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from embed.data.beir import join_title
from embed.data.vectors import Vectors
from embed.network.corpus_map import CorpusMap
from embed.text.analysis import index_terms
from gpt_core.common.errors import InputError
from gpt_core.common.files import atomic_folder
from index.reading.document import Document
from index.reading.pages import Pages
from index.reading.passages import Passage
from index.store.connections import Connections, environment_errors_as_os_error, get_meta
from index.store.schema import FORMAT, LEXICAL, MIGRATIONS, SCHEMA
from index.store.settings import Settings

FILE = "index.sqlite"
Numbers = NDArray[np.int64]


class Store:
    """An index's SQLite file: any number of threads and processes can read, one can write.

    Raises:
        InputError: if `folder` has no index, a damaged one, or one of another format version.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / FILE).is_file():
            raise InputError(f"{folder} has no index (no {FILE}); create one with scripts/build_index.py.")
        self._connections = Connections(self.folder / FILE)
        try:
            with self.read() as tx:
                version = _format(tx)
            if version < FORMAT and version + 1 in MIGRATIONS:
                version = self._migrate()
            if version != FORMAT:
                raise InputError(
                    f"{folder}/{FILE} has format {version}; expected format {FORMAT}. Build the index again in "
                    "a new folder with scripts/build_index.py, from the same documents."
                )
            with self.read() as tx:
                self._connections.settings_json = get_meta(tx, "settings")
                self.settings = Settings.from_json(get_meta(tx, "settings"))
        except (sqlite3.DatabaseError, OSError) as error:
            raise InputError(f"{folder}/{FILE} cannot be read as an index: {error}.") from None

    def _migrate(self) -> int:
        """Bring the store to this program's format, in one transaction; returns the format."""
        if not os.access(self.folder, os.W_OK):
            raise InputError(
                f"{self.folder}/{FILE} has an older format, and the folder is read-only; open the index once where it "
                "can be written."
            )
        with self.write() as tx:
            for version in range(_format(tx) + 1, FORMAT + 1):  # none if another process was faster
                for statement in MIGRATIONS[version]:
                    tx.execute(statement)
            tx.execute(f"PRAGMA user_version = {FORMAT}")
        return FORMAT

    @classmethod
    def create(cls, folder: str | Path, settings: Settings) -> "Store":
        """Create an empty store in a new folder, atomically.

        Raises:
            InputError: if the folder exists and is not empty, or is the current folder. Of several processes that
                create the same index at once, one succeeds.
        """
        folder = Path(folder)
        _check_new(folder)
        try:
            with (
                environment_errors_as_os_error(folder / FILE),
                atomic_folder(folder, replace=False) as temporary,
                closing(sqlite3.connect(temporary / FILE)) as connection,
            ):
                connection.execute("PRAGMA page_size = 16384")  # several vectors per page
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT")
                with connection:
                    _set(connection, "settings", settings.to_json())
                    _set(connection, "sequence", 0)
                    _set_corpus_map(connection, CorpusMap(), 0)
        except FileExistsError:  # another process was faster
            raise _exists(folder) from None
        return cls(folder)

    def close(self) -> None:
        """Close all connections; connections in use are closed when their transaction ends."""
        self._connections.close()

    def is_replaced(self) -> bool:
        """Whether the store was deleted, or another one made in its place, since it was opened."""
        return self._connections.is_replaced()

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A read transaction: it sees one state of the store, unaffected by later writes.

        Raises:
            InputError: if the store is closed or replaced.
        """
        with self._connections.transaction("BEGIN") as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A write transaction: committed to disk when the block ends, rolled back if it raises.

        Raises:
            InputError: if the store is closed or replaced.
        """
        with self._connections.transaction("BEGIN IMMEDIATE") as connection:
            yield connection

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the writer lock. The operating system releases it when the process ends, also after a crash.

        Raises:
            InputError: if another process or thread is writing.
        """
        lock = FileLock(self.folder / "writer.lock", blocking=False, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            raise InputError(
                f"Another process, or another thread of this one, is writing to {self.folder}; wait until it has "
                "ended, or stop it."
            ) from None
        try:
            yield
        finally:
            lock.release()

    def backup(self, folder: str | Path) -> None:
        """Copy the store into a new folder, as it is at one moment; searches and writes go on meanwhile.

        Raises:
            InputError: if the folder exists and is not empty.
        """
        folder = Path(folder)
        _check_new(folder)
        with (
            atomic_folder(folder, replace=False) as temporary,
            self._connections.alone() as source,
            environment_errors_as_os_error(folder / FILE),
            closing(sqlite3.connect(temporary / FILE)) as target,
        ):
            source.backup(target)

    def vacuum(self) -> None:
        """Give the space of deleted rows back to the disk; needs as much free space as the file has, for a while.

        Raises:
            InputError: if another process or thread is writing.
        """
        with self.lock(), self._connections.alone() as connection:
            for table in LEXICAL:
                connection.execute(f"INSERT INTO {table} ({table}) VALUES ('optimize')")
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    # The following methods run within a transaction of this store.

    def put(
        self, tx: sqlite3.Connection, document: Document, passages: Sequence[Passage], vectors: Vectors
    ) -> bool:
        """Write a document, its passages and their vectors (n, dimension); True if it replaced one of this id."""
        replaced = self.remove(tx, document.id)
        pages = document.pages.to_json() if document.pages else ""
        columns = (
            document.title,
            document.text,
            document.metadata_json,
            document.hash,
            document.source,
            pages,
        )
        insert = "INSERT INTO documents (id, title, text, metadata, hash, source, pages) VALUES (?, ?, ?, ?, ?, ?, ?)"
        owner = tx.execute(insert, (document.id, *columns)).lastrowid
        first = _count_up(tx, len(passages)) + 1
        numbers = range(first, first + len(passages))
        rows = zip(numbers, passages, vectors.astype(self.settings.dtype), strict=True)
        for number, passage, vector in rows:
            headings = json.dumps(passage.headings, ensure_ascii=False)
            row = (number, owner, passage.start, passage.end, passage.text, headings)
            tx.execute("INSERT INTO passages VALUES (?, ?, ?, ?, ?, ?)", row)
            tx.execute("INSERT INTO vectors VALUES (?, ?)", (number, vector.tobytes()))
            self.index_words(tx, number, document.title, passage.text)
        return replaced

    def index_words(self, tx: sqlite3.Connection, number: int, title: str, text: str) -> None:
        """Write the words of a passage into the full text."""
        for table, terms in lexical_terms(title, text).items():
            tx.execute(f"INSERT INTO {table} (rowid, terms) VALUES (?, ?)", (number, terms))

    def remove(self, tx: sqlite3.Connection, doc_id: str) -> bool:
        """Delete a document with its passages, vectors and terms; False if there is no document of this id."""
        found = tx.execute("SELECT number FROM documents WHERE id = ?", (doc_id,)).fetchone()
        if not found:
            return False
        query = "SELECT number FROM passages WHERE document = ?"
        self.remove_passages(tx, tx.execute(query, found).fetchall())
        tx.execute("DELETE FROM documents WHERE number = ?", found)
        return True

    def remove_passages(self, tx: sqlite3.Connection, numbers: Sequence[tuple[int]]) -> None:
        """Delete passages with their vectors and terms, by rows of their ids."""
        first = _count_up(tx, len(numbers)) + 1
        tombstones = [(first + i, number) for i, (number,) in enumerate(numbers)]
        tx.executemany("INSERT INTO tombstones VALUES (?, ?)", tombstones)
        tx.executemany("DELETE FROM lexical WHERE rowid = ?", numbers)
        tx.executemany("DELETE FROM lexical_stop_words WHERE rowid = ?", numbers)
        tx.executemany("DELETE FROM vectors WHERE number = ?", numbers)
        tx.executemany("DELETE FROM passages WHERE number = ?", numbers)

    def sequence(self, tx: sqlite3.Connection) -> int:
        """The sequence number of the last change."""
        return get_meta(tx, "sequence")

    def document_state(self, tx: sqlite3.Connection, doc_id: str) -> tuple[str, str] | None:
        """The content hash and the source of a document, or None if there is no document of this id."""
        return tx.execute("SELECT hash, source FROM documents WHERE id = ?", (doc_id,)).fetchone()

    def set_source(self, tx: sqlite3.Connection, doc_id: str, source: str) -> None:
        """Record another source of a document whose content is the same."""
        tx.execute("UPDATE documents SET source = ? WHERE id = ?", (source, doc_id))

    def raise_sequence(self, tx: sqlite3.Connection, sequence: int) -> None:
        """Set the counter of changes to `sequence` if it is lower."""
        _set(tx, "sequence", max(sequence, self.sequence(tx)))

    def mark_changed(self, tx: sqlite3.Connection, doc_id: str) -> None:
        """Make a document differ from what its file has, so that the next `upsert` replaces it."""
        tx.execute(
            "UPDATE files SET state = '' WHERE source = (SELECT source FROM documents WHERE id = ?)",
            (doc_id,),
        )
        tx.execute("UPDATE documents SET hash = '' WHERE id = ?", (doc_id,))

    def document(self, tx: sqlite3.Connection, doc_id: str) -> Document | None:
        """The document with this id, or None if there is none."""
        columns = "id, text, title, metadata, source, pages"
        found = tx.execute(f"SELECT {columns} FROM documents WHERE id = ?", (doc_id,)).fetchone()
        if not found:
            return None
        doc_id, text, title, metadata, source, pages = found
        return Document(
            doc_id, text, title, json.loads(metadata), source, Pages.from_json(pages) if pages else None
        )

    def document_ids(self, tx: sqlite3.Connection) -> list[str]:
        """All document ids, in insertion order."""
        return [row[0] for row in tx.execute("SELECT id FROM documents ORDER BY number")]

    def count(self, tx: sqlite3.Connection, table: Literal["documents", "passages"]) -> int:
        """The number of documents or passages."""
        return tx.execute(f"SELECT count(*) FROM {table}").fetchone()[0]

    def vector_blocks(self, tx: sqlite3.Connection, sequence: int) -> Iterator[tuple[Numbers, Vectors]]:
        """Passages added after `sequence`, in blocks: sorted ids (n,) and stored vectors (n, dimension) as float32."""
        query = "SELECT number, vector FROM vectors WHERE number > ? ORDER BY number"
        cursor = tx.execute(query, (sequence,))
        while rows := cursor.fetchmany(4096):
            joined = np.frombuffer(b"".join(blob for _, blob in rows), dtype=self.settings.dtype)
            vectors = joined.astype(np.float32).reshape(len(rows), self.settings.dimension)
            yield np.array([number for number, _ in rows], dtype=np.int64), vectors

    def vectors_of(self, tx: sqlite3.Connection, numbers: Numbers) -> Vectors:
        """The stored vectors (n, dimension) as float32 of the passage ids `numbers` (n,), all of which exist."""
        query = "SELECT vector FROM vectors WHERE number IN (SELECT value FROM json_each(?)) ORDER BY number"
        known, places = np.unique(numbers, return_inverse=True)
        blobs = [vector for (vector,) in tx.execute(query, (json.dumps(known.tolist()),))]
        joined = np.frombuffer(b"".join(blobs), dtype=self.settings.dtype).astype(np.float32)
        return joined.reshape(len(known), self.settings.dimension)[places]

    def vectors(self, tx: sqlite3.Connection) -> tuple[Numbers, Vectors]:
        """All passages: sorted ids (n,) and stored vectors (n, dimension) as float32."""
        n = self.count(tx, "passages")
        numbers = np.empty(n, dtype=np.int64)
        vectors = np.empty((n, self.settings.dimension), dtype=np.float32)
        filled = 0
        for some_numbers, some_vectors in self.vector_blocks(tx, 0):
            end = filled + len(some_numbers)
            numbers[filled:end], vectors[filled:end] = some_numbers, some_vectors
            filled = end
        return numbers, vectors

    def deleted_after(self, tx: sqlite3.Connection, sequence: int) -> Numbers:
        """The ids (n,) int64 of the passages deleted after `sequence`, at least `first_sequence`."""
        rows = tx.execute("SELECT passage FROM tombstones WHERE sequence > ?", (sequence,))
        return np.array([number for (number,) in rows], dtype=np.int64)

    def first_sequence(self, tx: sqlite3.Connection) -> int:
        """The sequence number up to which deletions are forgotten: `deleted_after` knows those after it."""
        return get_meta(tx, "forgotten", 0)

    def forget_deletions(self, sequence: int, at_least: int) -> None:
        """Delete the records of the deletions up to `sequence`, if they are `at_least` so many."""
        enough = "SELECT 1 FROM tombstones WHERE sequence <= ? LIMIT 1 OFFSET ?"
        with self.read() as tx:
            if sequence > self.sequence(tx) or not tx.execute(enough, (sequence, at_least - 1)).fetchone():
                return
        with self.write() as tx:
            tx.execute("DELETE FROM tombstones WHERE sequence <= ?", (sequence,))
            _set(tx, "forgotten", sequence)

    def lexical_scores(
        self, tx: sqlite3.Connection, expression: str, *, of_stop_words: bool = False
    ) -> tuple[Numbers, NDArray[np.float32]]:
        """Passages that match an FTS5 expression: ids (n,), sorted, and BM25 scores (n,), higher is better.

        Args:
            tx: a transaction.
            expression: the expression.
            of_stop_words: search the passages' stop words instead of all other words.
        """
        table = "lexical_stop_words" if of_stop_words else "lexical"
        query = f"SELECT rowid, -bm25({table}) FROM {table} WHERE {table} MATCH ? ORDER BY rowid"
        values = chain.from_iterable(tx.execute(query, (expression,)))
        rows = np.fromiter(values, dtype=np.float64).reshape(-1, 2)
        return rows[:, 0].astype(np.int64), rows[:, 1].astype(np.float32)

    def n_passages_with(self, tx: sqlite3.Connection, terms: Iterable[str]) -> dict[str, int]:
        """For each stemmed term or bigram of `terms`, the number of passages that have it."""
        tx.execute("CREATE VIRTUAL TABLE IF NOT EXISTS temp.terms USING fts5vocab('main', 'lexical', 'row')")
        query = "SELECT doc FROM temp.terms WHERE term = ?"
        found = {term: tx.execute(query, (term,)).fetchone() for term in terms}
        return {term: row[0] if row else 0 for term, row in found.items()}

    def owners(self, tx: sqlite3.Connection, numbers: Sequence[int]) -> dict[int, int]:
        """The numbers of the documents of passages, by passage id."""
        query = "SELECT number, document FROM passages WHERE number IN (SELECT value FROM json_each(?))"
        return dict(tx.execute(query, (json.dumps(list(numbers)),)).fetchall())

    def passages(self, tx: sqlite3.Connection, numbers: Sequence[int]) -> dict[int, dict[str, Any]]:
        """The fields of a `Hit` for each of the passage ids `numbers`, by id."""
        query = """
            SELECT p.number, d.id AS doc_id, d.title, p.text, p.start, p.stop AS end, p.headings, d.metadata, d.pages
            FROM passages AS p JOIN documents AS d ON d.number = p.document
            WHERE p.number IN (SELECT value FROM json_each(?))"""
        cursor = tx.execute(query, (json.dumps(list(numbers)),))
        names = [column[0] for column in cursor.description]
        return {row[0]: dict(zip(names[1:], row[1:], strict=True)) for row in cursor}

    def corpus_map(self, tx: sqlite3.Connection) -> CorpusMap:
        """The corpus map; the identity map until one was fitted."""
        return CorpusMap.from_bytes(get_meta(tx, "corpus_map"))

    def map_hash(self, tx: sqlite3.Connection) -> str:
        """sha256 of the corpus map's bytes."""
        return get_meta(tx, "map_hash")

    def map_passages(self, tx: sqlite3.Connection) -> int:
        """The number of passages that the map was fitted on; 0 if none was fitted."""
        return get_meta(tx, "map_passages")

    def faiss(self, tx: sqlite3.Connection) -> tuple[str, float]:
        """The FAISS factory string of snapshots, or "auto", and the least recall of approximate search."""
        return get_meta(tx, "faiss", "auto"), get_meta(tx, "recall", 0.95)

    def put_faiss(self, tx: sqlite3.Connection, factory: str, recall: float) -> None:
        """Store what `faiss` returns."""
        _set(tx, "faiss", factory)
        _set(tx, "recall", recall)

    def put_corpus_map(self, tx: sqlite3.Connection, corpus_map: CorpusMap, n_passages: int) -> None:
        """Store a corpus map that was fitted on `n_passages` passages."""
        _set_corpus_map(tx, corpus_map, n_passages)


def lexical_terms(title: str, text: str) -> dict[str, str]:
    """What each table of the full text has for a passage."""
    terms = index_terms(join_title(title, text))
    return {"lexical": " ".join(terms.words), "lexical_stop_words": " ".join(terms.stop_words)}


def _format(tx: sqlite3.Connection) -> int:
    return tx.execute("PRAGMA user_version").fetchone()[0]


def _check_new(folder: Path) -> None:
    """Raise InputError unless `folder` can become the folder of a store."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise _exists(folder)
    if folder.resolve() == Path.cwd():  # atomic_folder would replace the current folder
        raise InputError(f"{str(folder)!r} is the current folder; give a new folder for the index.")


def _exists(folder: Path) -> InputError:
    what = "has an index" if (folder / FILE).exists() else "exists"
    return InputError(f"{folder} {what} already; give a new folder.")


def _set(tx: sqlite3.Connection, key: str, value: str | float | bytes) -> None:
    tx.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))


def _count_up(tx: sqlite3.Connection, n: int) -> int:
    """Reserve the next `n` sequence numbers; returns the number before the first of them."""
    last = get_meta(tx, "sequence")
    _set(tx, "sequence", last + n)
    return last


def _set_corpus_map(tx: sqlite3.Connection, corpus_map: CorpusMap, n_passages: int) -> None:
    data = corpus_map.to_bytes()
    _set(tx, "corpus_map", data)
    _set(tx, "map_hash", hashlib.sha256(data).hexdigest())
    _set(tx, "map_passages", n_passages)
