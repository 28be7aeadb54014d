"""A snapshot of the vectors for FAISS: a cache of the store, with a checksum, which FAISS files lack.

`snapshot.faiss` contains the mapped vectors by passage id and can be opened in faiss; `snapshot.json` identifies the
index and its state. A snapshot that is missing, damaged, or made for another index or corpus map is ignored and
rebuilt.
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
# Import faiss after torch: then both share the settings of one OpenMP runtime; otherwise each has its own threads.
import faiss

FILE, MANIFEST = "snapshot.faiss", "snapshot.json"


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


class Snapshot:
    """Mapped vectors in an exact FAISS index; immutable.

    Attributes:
        state: the state of the index it was made from.
        numbers: (n,) int64 passage ids, sorted ascending.
        vectors: (n, d) float32, a view of FAISS's memory.
    """

    def __init__(self, index: Any, state: State) -> None:
        self.state = state
        self._index = index  # owns the memory of `vectors`
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
        """A snapshot of `vectors` (n, d) with the passage ids `numbers` (n,), sorted ascending."""
        index = faiss.IndexIDMap(faiss.IndexFlatIP(vectors.shape[1]))
        index.add_with_ids(vectors, numbers)
        return cls(index, state)

    @classmethod
    def load(cls, folder: Path, identity: str, map_hash: str, sequence: int) -> "Snapshot | None":
        """The snapshot in `folder`; None unless it is intact, of this index and map, and not newer than `sequence`."""
        manifest = _read_manifest(folder)
        if manifest is None:
            return None
        state, checksum = manifest
        if (state.identity, state.map_hash) != (identity, map_hash) or state.sequence > sequence:
            return None
        try:
            # FAISS rejects a truncated file, but loads one with a flipped byte.
            if sha256_file(folder / FILE) != checksum:
                return None
            return cls(faiss.read_index(str(folder / FILE)), state)
        except (OSError, RuntimeError):  # FAISS raises RuntimeError
            return None

    def save(self, folder: Path) -> None:
        """Write the snapshot. An OSError is ignored: without a snapshot, opening the index only takes longer."""
        data = faiss.serialize_index(self._index).tobytes()
        with contextlib.suppress(OSError):
            atomic_write(folder / FILE, data)
            manifest = {**asdict(self.state), "sha256": sha256_file(folder / FILE)}
            atomic_write(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")

    @staticmethod
    def state_on_disk(folder: Path) -> State | None:
        """The state named in the manifest of the snapshot in `folder`, or None if there is no valid manifest."""
        manifest = _read_manifest(folder)
        return manifest[0] if manifest else None

    @staticmethod
    def discard(folder: Path) -> None:
        """Delete the snapshot in `folder`."""
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
