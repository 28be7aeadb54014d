"""Read PyTorch files and plain pickles safely: only tensors and plain values are read, no code is executed."""

import pickle
import pickletools
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt_core.common.errors import InputError

# Opcodes that build plain values; none of them looks up a name or calls anything
PLAIN_OPCODES = {
    *("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "NONE", "NEWTRUE", "NEWFALSE"),
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
    *("EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "LIST", "APPEND", "APPENDS"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET"),
}


def read_bin(path: Path) -> dict[str, Tensor]:
    """The tensors of a `pytorch_model.bin` by the names in the file.

    Tensors of PyTorch's zip format (1.6 and later) are memory-mapped, not copied.

    Raises:
        InputError: for a file that is damaged, holds anything but tensors, or would run code.
    """
    content = read_torch(path)
    if not are_tensors(content):
        raise InputError(f"{path} is not a table of named tensors; expected only the weights of a model.")
    return dict(content)


def read_torch(path: Path) -> Any:
    """The content of a file of `torch.save` that consists of tensors and plain values.

    Raises:
        InputError: for a damaged file, or one that would run code.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings precede an error or are harmless
            # torch before 1.6 wrote bare pickles; only zip files can be memory-mapped
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # torch can raise any error for a damaged pickle
        if named := re.search(r"GLOBAL (\S+)", str(error)):
            raise InputError(
                f"{path} refers to {named[1]}, which is neither a tensor nor a plain value; a pickle is never "
                "executed here: get the weights as safetensors."
            ) from error
        raise InputError(
            f"{path} is damaged, or not a file of torch.save; copy or fetch it again."
        ) from error


def read_plain_pickle(path: Path) -> Any:
    """The content of a pickle that consists of plain values and containers; other pickles are not loaded.

    Raises:
        InputError: for a damaged pickle, or one whose opcodes would look up a name or call something.
    """
    data = path.read_bytes()
    try:
        opcodes = [(opcode.name, argument) for opcode, argument, _ in pickletools.genops(data)]
        odd = [name for name, _ in opcodes if name not in PLAIN_OPCODES]
        # a huge memo index would make the reader allocate that much memory
        odd += [name for name, number in opcodes if name.endswith("PUT") and int(number or 0) > len(data)]
        content = None if odd else pickle.loads(data)
    except Exception as error:  # pickle can raise any error for a damaged file
        raise InputError(
            f"{path} is damaged, or not a pickle; copy it again from the data folder."
        ) from error
    if odd:
        raise InputError(
            f"{path} holds more than plain values ({odd[0]}); a pickle is never executed here: write it again with "
            "only Python's dict, str and int."
        )
    return content


def are_tensors(table: Any) -> bool:
    """Whether `table` is a dict from names to tensors."""
    return isinstance(table, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in table.items()
    )
