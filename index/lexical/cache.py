"""The postings of an index's full text at one state of the store, and the file that keeps them, with a checksum.

`words.safetensors` is a cache of the store: it is made anew if it is missing, damaged or of another index.
"""

import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from safetensors.numpy import save_file

from gpt_core.common.files import fsync_path
from index.lexical.postings import Postings
from index.store.schema import LEXICAL
from index.store.store import FILE, Store
from index.store.words import words_id

NAME, LOCK, PARTIAL = "words.safetensors", "words.lock", "words.partial"
NO_CHECKSUM = 64 * "0"
DTYPES = {"I64": np.int64, "I32": np.int32, "U8": np.uint8, "U16": np.uint16, "U32": np.uint32}


@dataclass(frozen=True)
class State:
    """The state of an index that postings were made of.

    Attributes:
        identity: identity of the index.
        words: identity of the full text, which a repair writes anew.
        sequence: sequence number of the last change included.
    """

    identity: str
    words: str
    sequence: int

    @classmethod
    def of(cls, store: Store, tx: sqlite3.Connection) -> "State":
        """The state that a transaction sees."""
        return cls(store.settings.identity, words_id(tx), store.sequence(tx))

    def is_of_same_index(self, other: "State") -> bool:
        """Whether both states are of the same full text of one index."""
        return (self.identity, self.words) == (other.identity, other.words)


@dataclass(frozen=True, eq=False)
class Cache:
    """The postings of both tables of the full text, in one state."""

    state: State
    postings: dict[str, Postings]  # by table

    @classmethod
    def read(cls, store: Store, tx: sqlite3.Connection) -> "Cache":
        """Read the postings from the store."""
        return cls(State.of(store, tx), {table: Postings.read(tx, table) for table in LEXICAL})

    @classmethod
    def load(cls, folder: Path, newest: State, oldest: int) -> "Cache | None":
        """The postings in `folder`, mapped into memory; None if they are damaged or cannot be used.

        Args:
            folder: the index's folder.
            newest: the state of the store; the postings must be of this or an earlier one.
            oldest: the least sequence number that the postings may have.
        """
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            header = _Header.read(folder / NAME)
            data = np.memmap(folder / NAME, np.uint8, "r", header.size)
            if header.checksum(data) != header.sha256:
                (folder / NAME).unlink()  # so that `save` writes it again
            elif header.state.is_of_same_index(newest) and oldest <= header.state.sequence <= newest.sequence:
                return cls(header.state, {table: header.postings(data, table) for table in LEXICAL})
        return None

    @staticmethod
    def discard_newer(folder: Path, newest: State) -> None:
        """Delete the file in `folder` if it is of a later state of this index, as after restoring a backup."""
        there = _state_on_disk(folder)
        if there and there.identity == newest.identity and there.sequence > newest.sequence:
            with contextlib.suppress(OSError):
                (folder / NAME).unlink()

    def save(self, folder: Path) -> None:
        """Write the postings, unless those in `folder` are as new; any number of processes may do so at once.

        An OSError, as of a full disk or a folder that is read-only, is ignored: the next process reads them anew.
        """
        with contextlib.suppress(OSError), FileLock(folder / LOCK):
            there = _state_on_disk(folder)
            if there and there.is_of_same_index(self.state) and there.sequence >= self.state.sequence:
                return
            arrays = {
                f"{table}.{one.name}": getattr(postings, one.name)
                for table, postings in self.postings.items()
                for one in fields(Postings)
            }
            partial = folder / PARTIAL
            try:
                self._write(partial, arrays)
                shutil.copymode(folder / FILE, partial)  # safetensors makes files for their owner only
                fsync_path(partial)
                os.replace(partial, folder / NAME)
                fsync_path(folder)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise

    def _write(self, path: Path, arrays: dict[str, Any]) -> None:
        state = {name: str(value) for name, value in asdict(self.state).items()}
        save_file(arrays, path, {**state, "sha256": NO_CHECKSUM})
        with open(path, "r+b") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            size = int.from_bytes(file.read(8), "little")
            start = file.read(size)
            file.seek(8)
            file.write(start.replace(NO_CHECKSUM.encode(), checksum.encode(), 1))


@dataclass(frozen=True)
class _Header:
    """What is before the arrays of a safetensors file, with the file's checksum, which is of the file without it."""

    start: bytes
    arrays: dict[str, Any]
    state: State
    sha256: str

    @classmethod
    def read(cls, path: Path) -> "_Header":
        """Read a file's header; raises OSError, ValueError, KeyError or TypeError if it has none."""
        with open(path, "rb") as file:
            size = 8 + int.from_bytes(file.read(8), "little")
            if size > path.stat().st_size:
                raise ValueError(size)
            file.seek(0)
            start = file.read(size)
        arrays = json.loads(start[8:])
        said = arrays.pop("__metadata__")
        state = State(said["identity"], said["words"], int(said["sequence"]))
        return cls(start, arrays, state, said["sha256"])

    @property
    def size(self) -> int:
        return len(self.start)

    def checksum(self, data: Any) -> str:
        """The checksum of the file with these arrays' bytes."""
        digest = hashlib.sha256(self.start.replace(self.sha256.encode(), NO_CHECKSUM.encode(), 1))
        digest.update(data)
        return digest.hexdigest()

    def postings(self, data: Any, table: str) -> Postings:
        """The postings of a table, as parts of the file's bytes after the header."""
        found = []
        for one in fields(Postings):
            place = self.arrays[f"{table}.{one.name}"]
            part = np.asarray(data[slice(*place["data_offsets"])])
            found.append(part.view(DTYPES[place["dtype"]]).reshape(place["shape"]))
        return Postings(*found)


def _state_on_disk(folder: Path) -> State | None:
    """The state that the file in `folder` says; None if there is no such file."""
    try:
        return _Header.read(folder / NAME).state
    except (OSError, ValueError, KeyError, TypeError):
        return None
