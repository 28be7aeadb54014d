"""A snapshot of the vectors for FAISS: a cache of the store, with a checksum, which FAISS files lack.

`snapshot-<hash>.faiss` has the mapped vectors by passage id and can be opened in faiss; its name is its content's
sha256, so a file with this name never changes. `snapshot.json` names it, with the index and the state that it was made
of. A snapshot that is missing, damaged, or made for another index or corpus map is ignored and rebuilt.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from gpt_core.common.files import atomic_write
from index.dense.block import Block

# isort: split
import faiss  # after torch, which `index.dense.block` imports

MANIFEST, LOCK, PARTIAL = "snapshot.json", "snapshot.lock", "snapshot.partial"
FILES = "snapshot*.faiss"


@dataclass(frozen=True)
class State:
    """The state of an index that a snapshot was made from.

    Attributes:
        identity: identity of the index.
        map_hash: hash of the corpus map that was applied to the vectors.
        sequence: sequence number of the last change included.
    """

    identity: str
    map_hash: str
    sequence: int

    def is_of_same_index(self, other: "State") -> bool:
        """Whether both states are of one index with one corpus map."""
        return (self.identity, self.map_hash) == (other.identity, other.map_hash)


class Snapshot:
    """Mapped vectors in an exact FAISS index.

    Attributes:
        state: the state of the index it was made from.
        block: the passages; its vectors are a view of FAISS's memory.
        is_new: whether it was neither loaded from a file nor given to `save`.
    """

    def __init__(self, index: Any, state: State, *, is_new: bool) -> None:
        self.state, self.is_new = state, is_new
        self._index = index  # owns the memory of the vectors
        self.block = Block(faiss.vector_to_array(index.id_map), _rows(index))

    @classmethod
    def of(cls, n: int, dimension: int, blocks: Iterable[Block], state: State) -> "Snapshot":
        """A snapshot of the `n` passages of `blocks`, whose ids ascend; the vectors are copied, block by block."""
        flat = faiss.IndexFlatIP(dimension)
        index = faiss.IndexIDMap(flat)
        flat.codes.resize(n * dimension * 4)  # at once: `add` would need twice the memory as the index grows
        flat.ntotal = index.ntotal = n
        numbers, vectors, filled = np.empty(n, dtype=np.int64), _rows(index), 0
        for block in blocks:
            end = filled + len(block)
            numbers[filled:end], vectors[filled:end] = block.numbers, block.vectors
            filled = end
        faiss.copy_array_to_vector(numbers, index.id_map)
        return cls(index, state, is_new=True)

    @classmethod
    def load(cls, folder: Path, newest: State, oldest: int) -> "Snapshot | None":
        """The snapshot in `folder`, or None if it is damaged or cannot be used.

        Args:
            folder: the index's folder.
            newest: the state of the store; the snapshot must be of this or an earlier state.
            oldest: the least sequence number that the snapshot may have.
        """
        state, name = _read_manifest(folder) or (None, "")
        if state is None or not state.is_of_same_index(newest):
            return None
        if not oldest <= state.sequence <= newest.sequence:
            return None
        with contextlib.suppress(OSError, RuntimeError):  # FAISS raises RuntimeError
            with open(folder / name, "rb") as f:
                # FAISS loads a file with a flipped byte, and may allocate any amount of memory for one.
                if _file_name(hashlib.file_digest(f, "sha256").hexdigest()) == name:
                    f.seek(0)
                    reader = faiss.PyCallbackIOReader(f.read)  # type: ignore[attr-defined]
                    return cls(faiss.read_index(reader), state, is_new=False)
            (folder / name).unlink()  # so that `save` writes it again
        return None

    def save(self, folder: Path) -> None:
        """Write the snapshot, unless the one in `folder` is as new; any number of processes may do so at once.

        An OSError, as of a full disk or a folder that is read-only, is ignored: without a snapshot, opening the index
        only takes longer.
        """
        self.is_new = False
        with contextlib.suppress(OSError), FileLock(folder / LOCK):
            there = self.state_on_disk(folder)
            if there and there.is_of_same_index(self.state) and there.sequence >= self.state.sequence:
                return
            name = self._write(folder)
            atomic_write(folder / MANIFEST, json.dumps({**asdict(self.state), "file": name}, indent=2) + "\n")
            for other in folder.glob(FILES):
                if other.name != name:
                    other.unlink()

    def _write(self, folder: Path) -> str:
        """Write the FAISS file; returns its name."""
        digest, partial = hashlib.sha256(), folder / PARTIAL
        try:
            with open(partial, "wb") as f:

                def write(data: bytes) -> int:
                    digest.update(data)
                    return f.write(data)

                writer = faiss.PyCallbackIOWriter(write)  # type: ignore[attr-defined]
                faiss.write_index(self._index, writer)
                f.flush()
                os.fsync(f.fileno())
            name = _file_name(digest.hexdigest())
            os.replace(partial, folder / name)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        return name

    @staticmethod
    def is_whole(folder: Path) -> bool:
        """Whether the snapshot in `folder` has the content of its name; True if there is none."""
        manifest = _read_manifest(folder)
        if manifest is None:
            return True
        with open(folder / manifest[1], "rb") as file:
            return _file_name(hashlib.file_digest(file, "sha256").hexdigest()) == manifest[1]

    @staticmethod
    def state_on_disk(folder: Path) -> State | None:
        """The state of the snapshot in `folder`, as its manifest says; None if there is no manifest or no file."""
        manifest = _read_manifest(folder)
        return manifest[0] if manifest else None

    @staticmethod
    def discard(folder: Path) -> None:
        """Delete the manifest of the snapshot in `folder`; the next `save` deletes the file."""
        with contextlib.suppress(OSError):
            (folder / MANIFEST).unlink(missing_ok=True)


def _rows(index: Any) -> Any:
    """The vectors (n, d) of a FAISS index, a view of its memory."""
    flat: Any = faiss.downcast_index(index.index)
    if not flat.ntotal:
        return np.empty((0, flat.d), dtype=np.float32)
    return faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d).reshape(flat.ntotal, flat.d)


def _file_name(sha256: str) -> str:
    return f"snapshot-{sha256}.faiss"


def _read_manifest(folder: Path) -> tuple[State, str] | None:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        state = State(str(manifest["identity"]), str(manifest["map_hash"]), int(manifest["sequence"]))
        name = str(manifest["file"])
        # A name with a folder would lead out of the index.
        return (state, name) if Path(name).name == name and (folder / name).is_file() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
