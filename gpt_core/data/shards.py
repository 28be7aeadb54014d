"""Token shards: files of token ids with the fingerprint of their tokenizer and a checksum.

A split is the sorted files `train-00000.bin`, `train-00001.bin`, … of a folder. Each begins with the 256 bytes of
`HEADER`; the ids follow as little-endian uint16, or uint32 for vocabularies above 2**16. Beside each is
`train-00000.documents.npy`, int64: the offset of each document's first token. A file named exactly `train.bin` has
nanoGPT's format: uint16 ids without a header.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, TypedDict

import numpy as np
from numpy.typing import NDArray

from gpt_core.common.errors import InputError

MAGIC = b"zztokens"
VERSION = 1
SHARD_TOKENS = 2**27  # a shard ends with the document in which it reaches this many tokens
IDS_PER_CHUNK = 2**22  # ids in memory at a time while a shard is verified
NPY_HEADER = 128  # bytes before the values of a one-dimensional .npy file of any length

HEADER = np.dtype(
    [
        ("magic", "S8"),
        ("version", "<u4"),
        ("token_bytes", "<u4"),  # 2 or 4
        ("n_tokens", "<u8"),
        ("n_documents", "<u8"),
        ("vocab_size", "<u8"),
        ("tokenizer", "S64"),  # the tokenizer's fingerprint, sha256 in hex
        ("reserved", "V88"),
        ("checksum", "S64"),  # sha256 in hex over the ids, the document offsets and the header up to here
    ]
)


def token_dtype(vocab_size: int) -> np.dtype:
    """Little-endian uint16 if it holds every id below `vocab_size`, else uint32."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


class WriterState(TypedDict):
    """Progress of a `ShardWriter`, as JSON."""

    shard: int  # index of the open shard
    written: int  # tokens in the open shard
    offsets: int  # documents in the open shard
    n_tokens: int  # in all shards
    n_documents: int
    in_document: bool


class ShardWriter:
    """Writes documents, one after the other, as the shards of one split.

    Use it as a context manager, on a temporary folder that is renamed when all shards are complete. Memory does not
    grow with the number of tokens.

    Args:
        folder: existing folder for the shards.
        split: "train" or "val".
        vocab_size: of the tokenizer; it decides the dtype of the ids.
        tokenizer: the tokenizer's fingerprint.
        shard_tokens: a shard ends with the document in which it reaches this many tokens.
        resume: state of an earlier writer to continue from; tokens written after that state are discarded.

    Raises:
        InputError: if a file in the folder is shorter than the state says.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        vocab_size: int,
        tokenizer: str,
        shard_tokens: int = SHARD_TOKENS,
        resume: WriterState | None = None,
    ) -> None:
        self.folder, self.split = folder, split
        self.vocab_size, self.tokenizer = vocab_size, tokenizer
        self.shard_tokens = shard_tokens
        self.dtype = token_dtype(vocab_size)
        self.n_tokens = 0  # in all shards
        self.n_documents = 0
        self._n_shards = 0
        self._in_document = False
        if resume is None:
            self._open()
        else:
            self._reopen(resume)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and (self._offsets or self._n_shards == 0):
                self._finish()
        finally:
            for file in (self._file, self._documents):
                with suppress(OSError):  # a full disk, which another error has reported already
                    file.close()

    def _open(self) -> None:
        self._path = self.folder / f"{self.split}-{self._n_shards:05d}.bin"
        self._file = open(self._path, "w+b")  # noqa: SIM115 - closed by __exit__ or _finish
        self._file.write(bytes(HEADER.itemsize))
        self._documents = open(_documents_path(self._path), "w+b")  # noqa: SIM115
        _write_npy_header(self._documents, 0)
        self._hash = hashlib.sha256()
        self._offsets = 0  # documents that begin in this shard
        self._written = 0  # tokens in this shard

    def _reopen(self, state: WriterState) -> None:
        self._n_shards, self._in_document = state["shard"], state["in_document"]
        self.n_tokens, self.n_documents = state["n_tokens"], state["n_documents"]
        self._written, self._offsets = state["written"], state["offsets"]
        self._path = self.folder / f"{self.split}-{self._n_shards:05d}.bin"
        for later in self.folder.glob(f"{self.split}-*"):
            if later.name[: len(self._path.stem)] > self._path.stem:
                later.unlink()
        end = HEADER.itemsize + self._written * self.dtype.itemsize
        for path, length in (
            (self._path, end),
            (_documents_path(self._path), NPY_HEADER + 8 * self._offsets),
        ):
            if not path.exists() or path.stat().st_size < length:
                raise InputError(
                    f"{path} is shorter than its saved progress; run the command again to start over."
                )
            os.truncate(path, length)
        self._file = open(self._path, "r+b")  # noqa: SIM115
        self._documents = open(_documents_path(self._path), "r+b")  # noqa: SIM115
        self._file.seek(0)
        self._file.write(bytes(HEADER.itemsize))  # clear the header of a shard that was already finished
        self._hash = hashlib.sha256()
        while chunk := self._file.read(IDS_PER_CHUNK):
            self._hash.update(chunk)
        self._documents.seek(0, os.SEEK_END)

    def add(self, ids: Sequence[int] | NDArray, *, more: bool = False) -> None:
        """Append one document, or a piece of one; `more` is true for all pieces but a document's last.

        Raises:
            InputError: for an id outside the vocabulary, which might overflow the dtype.
        """
        wide = np.asarray(ids, dtype=None if isinstance(ids, np.ndarray) else np.int64)
        if len(wide) and not 0 <= wide.min() <= wide.max() < self.vocab_size:
            bad = wide[(wide < 0) | (wide >= self.vocab_size)][0]
            raise InputError(f"Token id {bad} is outside the vocabulary of {self.vocab_size}.")
        if not self._in_document:
            if self._written >= self.shard_tokens:
                self._finish()
                self._open()
            self._documents.write(self._written.to_bytes(8, "little"))
            self._offsets += 1
            self.n_documents += 1
        data = wide.astype(self.dtype).tobytes()
        self._file.write(data)
        self._hash.update(data)
        self._written += len(wide)
        self.n_tokens += len(wide)
        self._in_document = more

    def state(self) -> WriterState:
        """Flush all added tokens to disk (fsync) and return the progress."""
        for file in (self._file, self._documents):
            file.flush()
            os.fsync(file.fileno())
        return {
            "shard": self._n_shards,
            "written": self._written,
            "offsets": self._offsets,
            "n_tokens": self.n_tokens,
            "n_documents": self.n_documents,
            "in_document": self._in_document,
        }

    def _finish(self) -> None:
        self._documents.seek(0)
        _write_npy_header(self._documents, self._offsets)
        offsets = np.frombuffer(self._documents.read(), dtype="<i8")
        self._documents.close()
        header = np.zeros((), HEADER)
        header["magic"], header["version"] = MAGIC, VERSION
        header["token_bytes"], header["n_tokens"] = self.dtype.itemsize, self._written
        header["n_documents"], header["vocab_size"] = self._offsets, self.vocab_size
        header["tokenizer"] = self.tokenizer.encode()
        header["checksum"] = _seal(self._hash, offsets, header).encode()
        self._file.seek(0)
        self._file.write(header.tobytes())
        self._file.close()
        self._n_shards += 1


@dataclass(frozen=True)
class Shard:
    """One opened shard.

    Attributes:
        path: the file.
        tokens: (n_tokens,) uint16 or uint32 memory map of the ids.
        header: the file's `HEADER`; None for nanoGPT's format.
    """

    path: Path
    tokens: NDArray
    header: np.ndarray | None

    @property
    def tokenizer(self) -> str | None:
        """Fingerprint of the tokenizer that made the ids; None without a header."""
        return None if self.header is None else bytes(self.header["tokenizer"]).decode("ascii", "replace")

    @cached_property
    def checksum(self) -> bytes:
        """sha256 in hex: the header's, which `verify` checks; without a header, of the ids, which are read for it."""
        if self.header is not None:
            return bytes(self.header["checksum"])
        digest = hashlib.sha256()
        for chunk in self._chunks():
            digest.update(chunk.tobytes())
        return digest.hexdigest().encode()

    def _chunks(self) -> Iterator[NDArray]:
        for start in range(0, len(self.tokens), IDS_PER_CHUNK):
            yield self.tokens[start : start + IDS_PER_CHUNK]

    def documents(self) -> NDArray:
        """(n_documents,) int64 offsets of the documents' first tokens; [0] without a header."""
        if self.header is None:
            return np.zeros(1, dtype="<i8")
        path = _documents_path(self.path)
        if not path.exists():
            raise InputError(f"{path} is missing; prepare the data again.")
        try:
            return np.load(path)
        except (ValueError, EOFError) as error:
            raise InputError(f"{path} is damaged ({error}); prepare the data again.") from error

    def verify(self, vocab_size: int) -> None:
        """Read the whole shard once and check its checksum and that all ids are below `vocab_size`.

        Raises:
            InputError: naming the file and the fault.
        """
        digest, largest = hashlib.sha256(), 0
        for chunk in self._chunks():
            digest.update(chunk.tobytes())
            largest = max(largest, int(chunk.max()))
        if self.header is not None and _seal(digest, self.documents(), self.header) != bytes(
            self.header["checksum"]
        ).decode("ascii", "replace"):
            raise InputError(f"{self.path} is damaged: its checksum does not match. Prepare the data again.")
        if largest >= vocab_size:
            raise InputError(
                f"{self.path} holds token id {largest}; the vocabulary has only {vocab_size} tokens. Use the tokenizer "
                "that made the shard and a model of its vocabulary, or prepare the data again."
            )


def open_split(folder: str | Path, split: str) -> list[Shard]:
    """Open the shards of one split, in order. Only headers are read; `Shard.verify` checks the ids.

    Raises:
        InputError: if there are no shards, or one is truncated or not a shard.
    """
    folder = Path(folder)
    plain = folder / f"{split}.bin"
    paths = sorted(folder.glob(f"{split}-*.bin")) or ([plain] if plain.exists() else [])
    if not paths:
        raise InputError(
            f"{folder} has no token shards of the split {split!r}; "
            f"make them with scripts/prepare_data.py --out {folder}."
        )
    return [_open_nanogpt(p) if p == plain else _open_shard(p) for p in paths]


def _open_shard(path: Path) -> Shard:
    size = os.path.getsize(path)
    with open(path, "rb") as f:
        start = f.read(HEADER.itemsize)
    if len(start) < HEADER.itemsize or not start.startswith(MAGIC):
        raise InputError(
            f"{path} is not a token shard: it does not begin with a complete header. Prepare the data again."
        )
    header = np.frombuffer(start, HEADER)[0]
    if header["version"] != VERSION or header["token_bytes"] not in (2, 4):
        raise InputError(
            f"{path} is a token shard of version {header['version']} with {header['token_bytes']} bytes per "
            f"token; expected version {VERSION} and 2 or 4 bytes. Prepare the data again."
        )
    expected = HEADER.itemsize + int(header["n_tokens"]) * int(header["token_bytes"])
    if size != expected:
        raise InputError(f"{path} has {size} bytes, expected {expected}. Prepare the data again.")
    return Shard(path, _map(path, np.dtype(f"<u{header['token_bytes']}"), HEADER.itemsize), header)


def _open_nanogpt(path: Path) -> Shard:
    size = os.path.getsize(path)
    if size % 2:
        raise InputError(
            f"{path} has {size} bytes, an odd number, but nanoGPT writes uint16 ids; prepare the data again."
        )
    return Shard(path, _map(path, np.dtype("<u2"), 0), None)


def _map(path: Path, dtype: np.dtype, offset: int) -> NDArray:
    if os.path.getsize(path) == offset:  # an empty file cannot be mapped
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r", offset=offset)


def _documents_path(path: Path) -> Path:
    return path.with_suffix(".documents.npy")


def _write_npy_header(file: BinaryIO, n: int) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": (n,)})


def _seal(digest: "hashlib._Hash", offsets: NDArray, header: np.ndarray) -> str:
    """Add the document offsets and the header up to the checksum to the sha256 of the ids; hex."""
    digest.update(offsets.tobytes())
    digest.update(header.tobytes()[: HEADER.fields["checksum"][1]])  # type: ignore[index]
    return digest.hexdigest()
