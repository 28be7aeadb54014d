"""Checksums of a file by blocks of 16 MB, so that it can be checked in the background after it was opened."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

BLOCK = 1 << 24  # bytes


@dataclass(frozen=True)
class Checksums:
    """The size of a file in bytes, and the sha256 of each of its blocks."""

    size: int
    blocks: tuple[str, ...]

    def is_size_of(self, path: Path) -> bool:
        """Whether the file has this size; an OSError if there is none."""
        return path.stat().st_size == self.size

    def are_of(self, path: Path, is_stopped: Callable[[], bool] = lambda: False) -> bool:
        """Whether the file has these checksums. Reads the file once; True if `is_stopped` ends the reading."""
        with open(path, "rb", buffering=0) as file:
            if not self.is_size_of(path):
                return False
            for expected in self.blocks:
                if is_stopped():
                    return True
                if hashlib.sha256(file.read(BLOCK)).hexdigest() != expected:
                    return False
        return True


class ChecksumWriter:
    """Writes to an open file, and computes its checksums on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._size = file, 0
        self._blocks: list[str] = []
        self._digest, self._left = hashlib.sha256(), BLOCK

    def write(self, data: bytes | memoryview) -> int:
        """Write `data`; returns its number of bytes."""
        size = memoryview(data).nbytes
        rest = memoryview(data).cast("B") if size else memoryview(b"")  # an empty array cannot be cast
        while len(rest):
            part, rest = rest[: self._left], rest[self._left :]
            self._digest.update(part)
            self._left -= len(part)
            if not self._left:
                self._end_block()
        self._size += size
        self._file.write(data)
        return size

    def checksums(self) -> Checksums:
        """The checksums of what was written."""
        if self._left < BLOCK:
            self._end_block()
        return Checksums(self._size, tuple(self._blocks))

    def _end_block(self) -> None:
        self._blocks.append(self._digest.hexdigest())
        self._digest, self._left = hashlib.sha256(), BLOCK
