"""A snapshot of the vectors: a cache of the store, in files that are mapped into memory and have checksums.

A folder `snapshot-<random>` has the mapped vectors (`vectors.npy`), their passage ids (`numbers.npy`), their moments
(`moments.npy`) and, if there are many, a FAISS index whose ids are rows of the vectors (`ann.faiss`). It never changes.
`snapshot.json` names it, with the index and the state that it was made of, and the checksums of its files by blocks of
16 MB. A snapshot that is missing, damaged, or made for another index or corpus map is ignored and rebuilt.

The vectors of a large snapshot are checked after it was opened (`check`). Until then, scores come from the store.
"""

import contextlib
import secrets
import shutil
import threading
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from embed.data.vectors import Vectors
from gpt_core.common.files import atomic_folder, atomic_write
from index.dense.ann import FLAT_SEARCH, Ann, Search, Wanted
from index.dense.block import Block
from index.dense.checksums import Checksums, ChecksumWriter
from index.dense.manifest import MANIFEST, Manifest, State
from index.dense.moments import Moments
from index.dense.tuning import build

LOCK, FOLDERS = "snapshot.lock", "snapshot-*"
VECTORS, NUMBERS, MOMENTS, ANN = "vectors.npy", "numbers.npy", "moments.npy", "ann.faiss"
# Vectors up to this size are checked when they are opened: that takes at most 50 ms.
CHECKED_AT_ONCE = 64_000_000


class Snapshot:
    """Mapped vectors, in memory or in files.

    Attributes:
        state: the state of the index it was made from.
        block: the passages.
        search: how it is searched.
        wanted: what was asked of it; of one in memory, the defaults.
        ann: the approximate index, or None: it is searched exactly.
        is_new: whether it is in memory only, and no process has tried to write it.
        is_checked: whether the vectors are known to be those that were written.
        is_damaged: whether they are known not to be.
    """

    def __init__(
        self,
        block: Block,
        state: State,
        *,
        search: Search = FLAT_SEARCH,
        wanted: Wanted | None = None,
        ann: Ann | None = None,
        moments: Moments | None = None,
        unchecked: tuple[Path, Checksums] | None = None,
    ) -> None:
        self.block, self.state, self.search, self.wanted, self.ann = block, state, search, wanted, ann
        self.is_new = wanted is None
        self.is_damaged = False
        self._moments, self._unchecked = moments, unchecked
        self.is_checked = unchecked is None
        self._checking = threading.Lock()

    @classmethod
    def of(cls, n: int, dimension: int, blocks: Iterable[Block], state: State) -> "Snapshot":
        """A snapshot in memory of the `n` passages of `blocks`, whose ids ascend; copied block by block."""
        whole = Block(np.empty(n, dtype=np.int64), np.empty((n, dimension), dtype=np.float32))
        filled = 0
        for block in blocks:
            end = filled + len(block)
            whole.numbers[filled:end], whole.vectors[filled:end] = block.numbers, block.vectors
            filled = end
        return cls(whole, state)

    @classmethod
    def load(cls, folder: Path, newest: State, oldest: int) -> "Snapshot | None":
        """The snapshot in `folder`, or None if it is damaged or cannot be used.

        Args:
            folder: the index's folder.
            newest: the state of the store; the snapshot must be of this or an earlier state.
            oldest: the least sequence number that the snapshot may have.
        """
        manifest = Manifest.read(folder)
        if manifest is None or not manifest.state.is_of_same_index(newest):
            return None
        if not oldest <= manifest.state.sequence <= newest.sequence:
            return None
        try:
            at_once = manifest.files[VECTORS].size <= CHECKED_AT_ONCE
            whole = all(
                sums.are_of(folder / manifest.folder / name)
                for name, sums in manifest.files.items()
                if at_once or name != VECTORS
            )
            if whole:
                return cls._opened(folder, manifest, is_checked=at_once)
            cls.discard(folder)
        except OSError:  # as when another process has just replaced it
            pass
        return None

    @classmethod
    def _opened(cls, folder: Path, manifest: Manifest, *, is_checked: bool) -> "Snapshot":
        path = folder / manifest.folder
        numbers, sums = np.load(path / NUMBERS), np.load(path / MOMENTS)
        block = Block(numbers, _mapped(path / VECTORS, len(numbers), sums.shape[1]))
        ann = Ann.read(path / ANN, manifest.search.efforts) if ANN in manifest.files else None
        return cls(
            block,
            manifest.state,
            search=manifest.search,
            wanted=manifest.wanted,
            ann=ann,
            moments=Moments(len(block), sums[0], sums[1:]),
            unchecked=None if is_checked else (path / VECTORS, manifest.files[VECTORS]),
        )

    @classmethod
    def write(
        cls, folder: Path, n: int, dimension: int, blocks: Iterable[Block], state: State, wanted: Wanted
    ) -> "Snapshot":
        """Write a snapshot of the `n` passages of `blocks`, whose ids ascend, and open it.

        The caller holds the lock `LOCK`. Older snapshots are deleted; processes that have them open keep them.

        Raises:
            OSError: as of a full disk.
        """
        files: dict[str, Checksums] = {}
        numbers, moments = np.empty(n, dtype=np.int64), Moments.of(np.empty((0, dimension), np.float32))
        name = FOLDERS.replace("*", secrets.token_hex(8))
        with atomic_folder(folder / name, replace=False) as path:
            with _writing(path, VECTORS, files) as file:
                header = {"descr": "<f4", "fortran_order": False, "shape": (n, dimension)}
                np.lib.format.write_array_header_1_0(file, header)
                filled = 0
                for block in blocks:
                    numbers[filled : filled + len(block)] = block.numbers
                    filled += len(block)
                    moments += block.moments
                    file.write(np.ascontiguousarray(block.vectors, dtype="<f4").data)
            vectors = _mapped(path / VECTORS, n, dimension)
            for part, array in ((NUMBERS, numbers), (MOMENTS, np.vstack([moments.total, moments.outer]))):
                with _writing(path, part, files) as file:
                    np.save(file, array)
            ann, search = build(vectors, wanted)
            if ann:
                with _writing(path, ANN, files) as file:
                    ann.write(file.write)
        manifest = Manifest(state, name, wanted, search, files)
        atomic_write(folder / MANIFEST, manifest.to_json())
        for other in [*folder.glob(FOLDERS), *folder.glob(f".{FOLDERS}")]:
            if other.name != name:  # a FAISS file of format 1, or a folder, also of a killed process
                other.unlink() if other.is_file() else shutil.rmtree(other, ignore_errors=True)
        return cls._opened(folder, manifest, is_checked=True)

    @cached_property
    def moments(self) -> Moments:
        """The moments of all vectors."""
        return self._moments or self.block.moments

    def check(self, stop: threading.Event) -> None:
        """Compare the vectors with their checksums; sets `is_checked` or `is_damaged`, or neither after `stop`.

        A damaged snapshot is discarded, unless another process has replaced it.
        """
        with self._checking:
            if self._unchecked is None or self.is_checked or self.is_damaged:
                return
            path, sums = self._unchecked
            try:
                is_whole = sums.are_of(path, stop.is_set)
            except OSError:  # another process has replaced the snapshot, or the disk fails
                is_whole = False
            if is_whole:
                self.is_checked = not stop.is_set()
                return
            saved = Manifest.read(path.parent.parent)
            if saved is None or saved.folder == path.parent.name:
                self.discard(path.parent.parent)
            self.is_damaged = True

    @staticmethod
    def is_whole(folder: Path) -> bool:
        """Whether the files of the snapshot in `folder` have their checksums; True if there is none."""
        manifest = Manifest.read(folder)
        if manifest is None:
            return not (folder / MANIFEST).exists()
        path = folder / manifest.folder
        return all(sums.are_of(path / name) for name, sums in manifest.files.items())

    @staticmethod
    def state_on_disk(folder: Path) -> State | None:
        """The state of the snapshot in `folder`, as its manifest says; None if there is no manifest or no file."""
        manifest = Manifest.read(folder)
        return manifest.state if manifest else None

    @staticmethod
    def discard(folder: Path) -> None:
        """Delete the manifest of the snapshot in `folder`; the next `write` deletes the files."""
        with contextlib.suppress(OSError):
            (folder / MANIFEST).unlink(missing_ok=True)


@contextlib.contextmanager
def _writing(folder: Path, name: str, files: dict[str, Checksums]) -> Iterator[ChecksumWriter]:
    """Write the file `name`, and put its checksums into `files`."""
    with open(folder / name, "wb") as file:
        writer = ChecksumWriter(file)
        yield writer
    files[name] = writer.checksums()


def _mapped(path: Path, n: int, dimension: int) -> Vectors:
    """The vectors (n, dimension) at the end of a .npy file; its header is not read, since it may not be checked yet."""
    if not n:
        return np.empty((0, dimension), dtype=np.float32)
    offset = path.stat().st_size - 4 * n * dimension
    return np.asarray(np.memmap(path, np.dtype("<f4"), "r", offset, (n, dimension)))
