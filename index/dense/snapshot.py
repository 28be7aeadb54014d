"""A snapshot of the vectors for FAISS: a cache of the store, with the checksum that FAISS's own files lack.

`snapshot.faiss` holds the mapped vectors under their passages' numbers and opens in faiss; `snapshot.json` says which
state of which index they are. A snapshot that is missing, torn, altered or of another index or map is simply not there.
"""

import contextlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from embed.data.vectors import Vectors
from gpt_core.common.files import atomic_write, sha256_file
from index.dense.moments import Moments
from index.store.store import Numbers

# isort: split
# After torch: then both use one OpenMP runtime's settings; the other way round, each has threads of its own.
import faiss

FILE, MANIFEST = "snapshot.faiss", "snapshot.json"


@dataclass(frozen=True)
class State:
    """What a snapshot is a snapshot of.

    Attributes:
        identity: of the index.
        map_hash: of the corpus map that its vectors went through.
        sequence: the last change that it has seen.
    """

    identity: str
    map_hash: str
    sequence: int


class Snapshot:
    """Mapped vectors in an exact FAISS index; never changed once made.

    Attributes:
        state: what it is a snapshot of.
        numbers: (n,) the passages' numbers, rising.
        vectors: (n, d) float32, FAISS's own memory.
    """

    def __init__(self, index: Any, state: State) -> None:
        self.state = state
        self._index = index  # holds the memory that `vectors` shows
        flat: Any = faiss.downcast_index(index.index)
        self.numbers: Numbers = faiss.vector_to_array(index.id_map)
        rows = (
            faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d)
            if flat.ntotal
            else np.empty(0, np.float32)
        )
        self.vectors: Vectors = rows.reshape(flat.ntotal, flat.d)

    @classmethod
    def of(cls, numbers: Numbers, vectors: Vectors, state: State) -> "Snapshot":
        """A snapshot of `vectors` (n, d) under `numbers` (n,), which rise."""
        index = faiss.IndexIDMap(faiss.IndexFlatIP(vectors.shape[1]))
        index.add_with_ids(vectors, numbers)
        return cls(index, state)

    @classmethod
    def load(cls, folder: Path, identity: str, map_hash: str, sequence: int) -> "Snapshot | None":
        """The snapshot in `folder`, or None if there is no whole one of this index and map from before `sequence`."""
        manifest = _read_manifest(folder)
        if manifest is None:
            return None
        state, checksum = manifest
        if (state.identity, state.map_hash) != (identity, map_hash) or state.sequence > sequence:
            return None
        try:
            # FAISS notices a file that is too short, but loads one with a flipped byte.
            if sha256_file(folder / FILE) != checksum:
                return None
            return cls(faiss.read_index(str(folder / FILE)), state)
        except (OSError, RuntimeError):  # RuntimeError is FAISS's own
            return None

    def save(self, folder: Path) -> None:
        """Write the snapshot, if that is possible: where it is not, the next process takes longer to open the index."""
        data = faiss.serialize_index(self._index).tobytes()
        with contextlib.suppress(OSError):
            atomic_write(folder / FILE, data)
            manifest = {**asdict(self.state), "sha256": sha256_file(folder / FILE)}
            atomic_write(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")

    @staticmethod
    def state_on_disk(folder: Path) -> State | None:
        """What the snapshot in `folder` says that it is, or None if there is none."""
        manifest = _read_manifest(folder)
        return manifest[0] if manifest else None

    @staticmethod
    def discard(folder: Path) -> None:
        """Remove the snapshot in `folder`."""
        for name in (MANIFEST, FILE):
            with contextlib.suppress(OSError):
                (folder / name).unlink(missing_ok=True)

    @cached_property
    def moments(self) -> Moments:
        """The moments of all vectors."""
        return Moments.of(self.vectors)


def _read_manifest(folder: Path) -> tuple[State, str] | None:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        state = State(str(manifest["identity"]), str(manifest["map_hash"]), int(manifest["sequence"]))
        return state, manifest["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
