"""Read GGUF files: metadata by key and memory-mapped tensors by name.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The package `gguf` reads the same files, but takes
seconds for a vocabulary and raises many kinds of errors for a damaged file.
"""

import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType, quants
from torch import Tensor

from gpt_core.common.errors import InputError

STRUCT_FORMATS = {
    GGUFValueType.UINT8: "B", GGUFValueType.INT8: "b", GGUFValueType.UINT16: "H", GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I", GGUFValueType.INT32: "i", GGUFValueType.UINT64: "Q", GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT32: "f", GGUFValueType.FLOAT64: "d", GGUFValueType.BOOL: "?",
}  # fmt: skip
MAX_DIMENSIONS = 4  # ggml's limit


class TensorInfo(NamedTuple):
    """Location of a tensor: shape in torch's order, number format, offset of its first byte, size in bytes."""

    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    start: int
    size: int


class GGUF:
    """A GGUF file.

    Attributes:
        path: the file.
        metadata: numbers, strings and lists of them, by key.
        tensor_infos: locations of the tensors, by name.

    Raises:
        InputError: for a damaged file or one of another format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._read()
        except (struct.error, ValueError, OverflowError, MemoryError, RecursionError) as error:
            raise InputError(f"{path} is not a valid GGUF file ({error}); copy or fetch it again.") from error

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a metadata key, or `default`."""
        return self.metadata.get(key, default)

    def require(self, key: str) -> Any:
        """The value of a metadata key; InputError if the file lacks it."""
        if key not in self.metadata:
            raise InputError(f"{self.path} lacks the metadata key {key}; convert the model again.")
        return self.metadata[key]

    def texts(self, key: str) -> list[str]:
        """The list of strings under a metadata key; InputError if the file has none."""
        value = self.require(key)
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise InputError(f"{self.path} has no list of strings as {key}; convert the model again.")
        return value

    def tensor(self, name: str) -> Tensor:
        """A copy of a tensor, dequantised to float32.

        Raises:
            InputError: for a number format that cannot be read.
        """
        info = self.tensor_infos[name]
        data = np.frombuffer(self._data, dtype=np.uint8, count=info.size, offset=info.start)
        try:
            rows = data.reshape(quants.quant_shape_to_byte_shape(info.shape, info.kind))
            values = quants.dequantize(rows, info.kind)
        except (NotImplementedError, ValueError) as error:
            raise InputError(
                f"{self.path} holds {name} in the format {info.kind.name}, of rows of {info.shape[-1]}, which cannot "
                "be read; convert the model to F16 or Q8_0."
            ) from error
        return torch.from_numpy(
            np.array(values, dtype=np.float32)
        )  # a copy: torch cannot share read-only memory

    def _read(self) -> None:
        self._at = 0
        magic, version = self._numbers("I", 2)
        if magic != int.from_bytes(b"GGUF", "little"):
            raise ValueError("it does not begin with GGUF")
        if version not in (2, 3):
            raise ValueError(f"its version is {version}, expected 2 or 3 in little-endian order")
        n_tensors, n_keys = self._numbers("Q", 2)
        self.metadata: dict[str, Any] = {}
        for _ in range(n_keys):
            key = self._text()
            self.metadata[key] = self._value(*self._numbers("I"))
        listed = [self._tensor_info() for _ in range(n_tensors)]
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1:
            raise ValueError(f"its alignment is {alignment!r}")
        begin = -(-self._at // alignment) * alignment
        self.tensor_infos: dict[str, TensorInfo] = {}
        for name, info in listed:
            if begin + info.start + info.size > len(self._data):
                raise ValueError(f"it ends before its tensor {name}")
            self.tensor_infos[name] = info._replace(start=begin + info.start)

    def _tensor_info(self) -> tuple[str, TensorInfo]:
        name = self._text()
        (n_dims,) = self._numbers("I")
        if not 1 <= n_dims <= MAX_DIMENSIONS:
            raise ValueError(f"its tensor {name} has {n_dims} dimensions")
        shape = self._numbers("Q", n_dims)[::-1]
        (kind,) = self._numbers("I")
        (start,) = self._numbers("Q")
        if kind not in set(GGMLQuantizationType):
            raise ValueError(f"its tensor {name} has the unknown format {kind}")
        kind = GGMLQuantizationType(kind)
        block, n_bytes = GGML_QUANT_SIZES[kind]
        size = int(np.prod(shape, dtype=object)) // block * n_bytes
        return name, TensorInfo(shape, kind, start, size)

    def _numbers(self, form: str, count: int = 1) -> tuple[Any, ...]:
        """The next `count` numbers in the `struct` format `form`."""
        form = f"<{count}{form}"
        values = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return values

    def _text(self) -> str:
        (length,) = self._numbers("Q")
        begin, self._at = self._at, self._at + length
        if self._at > len(self._data):
            raise ValueError("it ends within a string")
        return self._data[begin : self._at].decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == GGUFValueType.STRING:
            return self._text()
        if kind == GGUFValueType.ARRAY:
            ((kind,), (count,)) = self._numbers("I"), self._numbers("Q")
            if kind in STRUCT_FORMATS:
                return list(self._numbers(STRUCT_FORMATS[GGUFValueType(kind)], count))
            return [self._value(kind) for _ in range(count)]
        if kind not in STRUCT_FORMATS:
            raise ValueError(f"it has a value of the unknown kind {kind}")
        return self._numbers(STRUCT_FORMATS[GGUFValueType(kind)])[0]
