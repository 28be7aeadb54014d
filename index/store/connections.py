"""Transactions on an index's SQLite file: one connection for each that runs, and a check that the file is still it."""

import os
import sqlite3
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from gpt_core.common.errors import InputError
from index.store.schema import ENVIRONMENT_ERRORS


class ReplacedError(InputError):
    """The index was deleted, replaced by another, or got another embedder, after it was opened."""


class Connections:
    """The connections to one SQLite file; any number of threads can use them.

    Attributes:
        settings_json: the index's settings, with its identity; None until they were read.
    """

    def __init__(self, path: Path) -> None:
        self.settings_json: str | None = None
        self._name = path.parent  # as the user gave it, for messages
        self._path = path.absolute()  # the current folder may change
        self._file, self._replaced = _file_id(self._path), False
        self._idle: deque[sqlite3.Connection] = deque()
        self._closed = False

    def close(self) -> None:
        """Close all connections; connections in use are closed when their transaction ends."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def is_replaced(self) -> bool:
        """Whether the file was deleted, or is of another index, since this object was made.

        A change of the embedder is noticed by the next transaction.
        """
        self._replaced = self._replaced or self._file != _file_id(self._path)
        return self._replaced

    @contextmanager
    def transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        """A transaction that `begin` begins: committed when the block ends, rolled back if it raises.

        Raises:
            ReplacedError: if the file is of another index by now, or the index has another embedder.
            InputError: if the index is closed.
            OSError: for an error of the file or the disk.
        """
        if self._replaced:
            raise self._replaced_error()
        if self._closed:
            raise InputError(f"The index {self._name} is closed; open it again.")
        # A connection serves one transaction at a time, so concurrent transactions use separate connections.
        connection = self._idle.pop() if self._idle else self._connect()
        try:
            with environment_errors_as_os_error(self._path):
                connection.execute(begin)
                self._check_identity(connection)
                yield connection
                connection.execute("COMMIT")
        except BaseException:
            connection.close()  # which rolls back; after an error of the file, the connection may be of no more use
            raise
        if self._is_writable():
            self._idle.append(connection)
        else:
            connection.close()  # another user may write next, so `_access` decides again
        if self._closed:
            self.close()

    @contextmanager
    def alone(self) -> Iterator[sqlite3.Connection]:
        """A connection without a transaction, for statements that SQLite runs outside of one.

        Raises:
            OSError: for an error of the file or the disk.
        """
        with environment_errors_as_os_error(self._path), closing(self._connect()) as connection:
            yield connection

    def _check_identity(self, tx: sqlite3.Connection) -> None:
        # A connection to a deleted file goes on working, so the file's id is compared. A new file may have the id of a
        # file that no connection keeps open, so the settings, with the identity of the index, are compared, too.
        if self.settings_json and (get_meta(tx, "settings") != self.settings_json or self.is_replaced()):
            self._replaced = True
            raise self._replaced_error()

    def _replaced_error(self) -> ReplacedError:
        return ReplacedError(
            f"The index {self._name} was deleted, replaced by another, or got another embedder, after it was opened; "
            "try again."
        )

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self._path.as_uri()}?{self._access()}",
            uri=True,
            timeout=60,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.execute("PRAGMA synchronous = FULL")  # commits survive a power failure
        connection.execute("PRAGMA foreign_keys = ON")
        return connection

    def _access(self) -> str:
        """The parameters of SQLite's URI: whether the file may be written, or cannot even change."""
        if self._is_writable():
            return "mode=rw"
        # SQLite reads with the help of two files beside the database. In a folder that is read-only it can use those
        # that are there, but make none. Without them no process is writing, and all changes are in the database.
        wal, shared = (Path(f"{self._path}{end}") for end in ("-wal", "-shm"))
        if shared.exists():
            return "mode=ro"
        if wal.exists() and wal.stat().st_size:
            raise OSError(
                f"{wal.name} has changes that {self._path.name} does not have yet, and the folder is read-only; open "
                "the index once where it can be written, then copy it"
            )
        return "mode=ro&immutable=1"

    def _is_writable(self) -> bool:
        return os.access(self._path.parent, os.W_OK)


@contextmanager
def environment_errors_as_os_error(path: Path) -> Iterator[None]:
    """Turn `ENVIRONMENT_ERRORS` into an OSError that names the file."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        # Errors raised by Python's sqlite3 module, such as for a closed connection, have no error code.
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in ENVIRONMENT_ERRORS:
            raise OSError(f"{path}: {error}") from error
        raise


def get_meta(tx: sqlite3.Connection, key: str, default: Any = None) -> Any:
    """A value of the table `meta`."""
    found = tx.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return found[0] if found else default


def set_meta(tx: sqlite3.Connection, key: str, value: str | float | bytes) -> None:
    """Set a value of the table `meta`."""
    tx.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))


def _file_id(path: Path) -> tuple[int, int] | None:
    """What tells a file from another of the same path; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
