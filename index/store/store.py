"""The source of truth of an index: one SQLite file with documents, passages, metadata, full text and vectors.

A document changes in one transaction. One counter, `sequence`, numbers every change: the addition of a passage (the
sequence number becomes the passage's id, `number`, and is never reused) and its deletion (a row of `tombstones`). A
reader that has processed all changes up to a sequence number can therefore query the changes after it.
"""

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from embed.data.vectors import Vectors
from embed.network.corpus_map import CorpusMap
from gpt_core.common.errors import InputError
from gpt_core.common.files import atomic_folder
from index.reading.document import Document
from index.reading.pages import Pages
from index.reading.passages import Passage
from index.store.connections import Connections, environment_errors_as_os_error, get_meta, set_meta
from index.store.fields import add_fields, remove_fields
from index.store.migrate import OLDEST, migrate
from index.store.schema import FORMAT, LEXICAL, SCHEMA
from index.store.settings import Settings
from index.store.texts import DOCUMENT_TEXT, TEXT, passage_texts, pieces
from index.store.words import add_words, name_words, remove_words

FILE = "index.sqlite"
Numbers = NDArray[np.int64]


class BusyError(InputError):
    """Another process or thread is writing to the index."""


class Store:
    """An index's SQLite file: any number of threads and processes can read, one can write.

    A store of an older format is brought to this program's, if `update`.

    Raises:
        InputError: if `folder` has no index, a damaged one, or one of another format version.
    """

    def __init__(self, folder: str | Path, *, update: bool = True) -> None:
        self.folder = Path(folder)
        if not (self.folder / FILE).is_file():
            raise InputError(f"{folder} has no index (no {FILE}); create one with scripts/build_index.py.")
        self._connections = Connections(self.folder / FILE)
        try:
            with self.read() as tx:
                version = _format(tx)
            if OLDEST <= version < FORMAT:
                if not update:
                    raise InputError(
                        f"{folder}/{FILE} has an older format; open the index once, as with scripts/search.py, which "
                        "brings it to this program's."
                    )
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
            migrate(tx, _format(tx))
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
                    set_meta(connection, "settings", settings.to_json())
                    set_meta(connection, "sequence", 0)
                    name_words(connection)
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
            BusyError: if another process or thread is writing.
        """
        lock = FileLock(self.folder / "writer.lock", blocking=False, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            raise BusyError(
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
            with target:
                set_meta(target, "milvus", "")  # a copy in Milvus is of one store only

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
        lead, middle, rest = pieces(document.text, passages)
        columns = {
            "id": document.id,
            "title": document.title,
            "metadata": document.metadata_json,
            "hash": document.hash,
            "source": document.source,
            "pages": document.pages.to_json() if document.pages else "",
            "lead": lead,
            "rest": rest,
        }
        places = ", ".join(f":{name}" for name in columns)
        insert = f"INSERT INTO documents ({', '.join(columns)}) VALUES ({places})"
        owner = tx.execute(insert, columns).lastrowid
        assert owner is not None  # an INSERT was executed
        add_fields(tx, owner, document.metadata_json)
        first = _count_up(tx, len(passages)) + 1
        numbers = range(first, first + len(passages))
        rows = zip(numbers, passages, middle, vectors.astype(self.settings.dtype), strict=True)
        for number, passage, piece, vector in rows:
            headings = json.dumps(passage.headings, ensure_ascii=False)
            row = (number, owner, passage.start, passage.end, piece, headings)
            tx.execute("INSERT INTO passages VALUES (?, ?, ?, ?, ?, ?)", row)
            tx.execute("INSERT INTO vectors VALUES (?, ?)", (number, vector.tobytes()))
        texts = ((n, document.title, p.text) for n, p in zip(numbers, passages, strict=True))
        add_words(tx, texts)
        return replaced

    def remove(self, tx: sqlite3.Connection, doc_id: str) -> bool:
        """Delete a document with all that belongs to it; False if there is no document of this id."""
        found = tx.execute("SELECT number, metadata FROM documents WHERE id = ?", (doc_id,)).fetchone()
        if not found:
            return False
        number, metadata = found
        remove_words(tx, passage_texts(tx, "p.document = ?", (number,)))
        remove_fields(tx, number, metadata)
        self.remove_rows(tx, number)
        return True

    def remove_rows(self, tx: sqlite3.Connection, document: int) -> None:
        """Delete a document by its number, with its passages and vectors, but neither their terms nor its fields."""
        query = "SELECT number FROM passages WHERE document = ?"
        self.remove_passages(tx, tx.execute(query, (document,)).fetchall())
        tx.execute("DELETE FROM documents WHERE number = ?", (document,))

    def remove_passages(self, tx: sqlite3.Connection, numbers: Sequence[tuple[int]]) -> None:
        """Delete passages and their vectors, but not their terms, by rows of their ids."""
        first = _count_up(tx, len(numbers)) + 1
        tombstones = [(first + i, number) for i, (number,) in enumerate(numbers)]
        tx.executemany("INSERT INTO tombstones VALUES (?, ?)", tombstones)
        tx.executemany("DELETE FROM vectors WHERE number = ?", numbers)
        tx.executemany("DELETE FROM new_vectors WHERE number = ?", numbers)
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
        set_meta(tx, "sequence", max(sequence, self.sequence(tx)))

    def mark_changed(self, tx: sqlite3.Connection, doc_id: str) -> None:
        """Make a document differ from what its file has, so that the next `upsert` replaces it."""
        tx.execute(
            "UPDATE files SET state = '' WHERE source = (SELECT source FROM documents WHERE id = ?)",
            (doc_id,),
        )
        tx.execute("UPDATE documents SET hash = '' WHERE id = ?", (doc_id,))

    def document(self, tx: sqlite3.Connection, doc_id: str) -> Document | None:
        """The document with this id, or None if there is none."""
        columns = f"id, {DOCUMENT_TEXT}, title, metadata, source, pages"
        found = tx.execute(f"SELECT {columns} FROM documents AS d WHERE id = ?", (doc_id,)).fetchone()
        if not found:
            return None
        doc_id, text, title, metadata, source, pages = found
        return Document(
            doc_id, text, title, json.loads(metadata), source, Pages.from_json(pages) if pages else None
        )

    def document_ids(self, tx: sqlite3.Connection) -> list[str]:
        """All document ids, in insertion order."""
        return [row[0] for row in tx.execute("SELECT id FROM documents ORDER BY number")]

    def passage_numbers(self, tx: sqlite3.Connection) -> Numbers:
        """The ids (n,) int64 of all passages, sorted."""
        rows = tx.execute("SELECT number FROM vectors ORDER BY number")
        return np.fromiter((number for (number,) in rows), dtype=np.int64)

    def count(self, tx: sqlite3.Connection, table: Literal["documents", "passages"]) -> int:
        """The number of documents or passages."""
        return tx.execute(f"SELECT count(*) FROM {table}").fetchone()[0]

    def vector_blocks(
        self, tx: sqlite3.Connection, sequence: int, settings: Settings | None = None
    ) -> Iterator[tuple[Numbers, Vectors]]:
        """Passages added after `sequence`, in blocks: sorted ids (n,) and stored vectors (n, dimension) as float32.

        `settings` are those of the vectors that `tx` sees; None: the store's.
        """
        settings = settings or self.settings
        query = "SELECT number, vector FROM vectors WHERE number > ? ORDER BY number"
        cursor = tx.execute(query, (sequence,))
        while rows := cursor.fetchmany(4096):
            joined = np.frombuffer(b"".join(blob for _, blob in rows), dtype=settings.dtype)
            vectors = joined.astype(np.float32).reshape(len(rows), settings.dimension)
            yield np.array([number for number, _ in rows], dtype=np.int64), vectors

    def vectors_of(self, tx: sqlite3.Connection, numbers: Numbers) -> Vectors:
        """The stored vectors (n, dimension) as float32 of the passage ids `numbers` (n,), all of which exist."""
        query = "SELECT vector FROM vectors WHERE number IN (SELECT value FROM json_each(?)) ORDER BY number"
        known, places = np.unique(numbers, return_inverse=True)
        blobs = [vector for (vector,) in tx.execute(query, (json.dumps(known.tolist()),))]
        joined = np.frombuffer(b"".join(blobs), dtype=self.settings.dtype).astype(np.float32)
        return joined.reshape(len(known), self.settings.dimension)[places]

    def vectors(self, tx: sqlite3.Connection, settings: Settings) -> Vectors:
        """The stored vectors (n, dimension) of all passages as float32; `settings` are theirs."""
        vectors = np.empty((self.count(tx, "passages"), settings.dimension), dtype=np.float32)
        filled = 0
        for _, some in self.vector_blocks(tx, 0, settings):
            vectors[filled : filled + len(some)] = some
            filled += len(some)
        return vectors

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
            set_meta(tx, "forgotten", sequence)

    def owners(self, tx: sqlite3.Connection, numbers: Sequence[int]) -> dict[int, int]:
        """The numbers of the documents of passages, by passage id."""
        query = "SELECT number, document FROM passages WHERE number IN (SELECT value FROM json_each(?))"
        return dict(tx.execute(query, (json.dumps(list(numbers)),)).fetchall())

    def passages(self, tx: sqlite3.Connection, numbers: Sequence[int]) -> dict[int, dict[str, Any]]:
        """The fields of a `Hit` for each of the passage ids `numbers`, by id."""
        query = f"""
            SELECT p.number, d.id AS doc_id, d.title, {TEXT} AS text, p.start, p.stop AS end, p.headings, d.metadata,
                d.pages
            FROM passages AS p JOIN documents AS d ON d.number = p.document
            WHERE p.number IN (SELECT value FROM json_each(?))"""
        cursor = tx.execute(query, (json.dumps(list(numbers)),))
        names = [column[0] for column in cursor.description]
        rows = {row[0]: dict(zip(names[1:], row[1:], strict=True)) for row in cursor}
        return {n: row | {"text": row["text"][: row["end"] - row["start"]]} for n, row in rows.items()}

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
        set_meta(tx, "faiss", factory)
        set_meta(tx, "recall", recall)

    def milvus(self, tx: sqlite3.Connection) -> str:
        """The address of the copy of the vectors in Milvus; empty without one."""
        return get_meta(tx, "milvus", "")

    def put_milvus(self, tx: sqlite3.Connection, address: str) -> None:
        """Store what `milvus` returns."""
        set_meta(tx, "milvus", address)

    def put_corpus_map(self, tx: sqlite3.Connection, corpus_map: CorpusMap, n_passages: int) -> None:
        """Store a corpus map that was fitted on `n_passages` passages."""
        _set_corpus_map(tx, corpus_map, n_passages)


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


def _count_up(tx: sqlite3.Connection, n: int) -> int:
    """Reserve the next `n` sequence numbers; returns the number before the first of them."""
    last = get_meta(tx, "sequence")
    set_meta(tx, "sequence", last + n)
    return last


def _set_corpus_map(tx: sqlite3.Connection, corpus_map: CorpusMap, n_passages: int) -> None:
    data = corpus_map.to_bytes()
    set_meta(tx, "corpus_map", data)
    set_meta(tx, "map_hash", hashlib.sha256(data).hexdigest())
    set_meta(tx, "map_passages", n_passages)
