"""Pickles: PyTorch's files and plain ones. Nothing in one is ever executed; tensors and plain values come out."""

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

# The steps of a pickle's program that build plain values; none of them looks up a name or calls anything
PLAIN_STEPS = {
    *("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "NONE", "NEWTRUE", "NEWFALSE"),
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
    *("EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "LIST", "APPEND", "APPENDS"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET"),
}


def read_bin(path: Path) -> dict[str, Tensor]:
    """The tensors of a `pytorch_model.bin`, under the names that the file gives them.

    Tensors of today's file format are mapped into memory, not copied.

    Raises:
        InputError: for a file that is damaged, holds anything but tensors, or would run code if it were let.
    """
    content = read_torch(path)
    if not are_tensors(content):
        raise InputError(f"{path} is not a table of named tensors; expected the weights of a model alone.")
    return dict(content)


def read_torch(path: Path) -> Any:
    """What `torch.save` wrote to `path`, if it is made of tensors and plain values.

    Raises:
        InputError: for a damaged file, or one that would run code if it were let.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of doubts that end in an error or in nothing
            # torch wrote bare pickles before 1.6; only its zip files can be mapped
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # a torn pickle can lead torch's reader into any error there is
        if named := re.search(r"GLOBAL (\S+)", str(error)):
            raise InputError(
                f"{path} refers to {named[1]}, which is neither a tensor nor a plain value; a pickle is never "
                "executed here, so ask its author for the weights as safetensors."
            ) from error
        raise InputError(f"{path} is damaged, or no file of torch.save; copy or fetch it again.") from error


def read_plain_pickle(path: Path) -> Any:
    """The content of a pickle that is made of plain values and containers alone; of any other, nothing is read.

    Raises:
        InputError: for a damaged pickle, or one whose steps would look up a name or call something.
    """
    data = path.read_bytes()
    try:
        steps = [(step.name, argument) for step, argument, _ in pickletools.genops(data)]
        odd = [name for name, _ in steps if name not in PLAIN_STEPS]
        # a reference by a huge number would have its reader reserve as much memory
        odd += [name for name, number in steps if name.endswith("PUT") and int(number or 0) > len(data)]
        content = None if odd else pickle.loads(data)
    except Exception as error:  # a torn pickle can lead its reader into any error there is
        raise InputError(f"{path} is damaged, or no pickle; copy it again from the data folder.") from error
    if odd:
        raise InputError(
            f"{path} holds more than plain values ({odd[0]}); a pickle is never executed here: write it again with "
            "Python's own dict, str and int alone."
        )
    return content


def are_tensors(table: Any) -> bool:
    """Whether `table` is a dict of tensors by name."""
    return isinstance(table, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in table.items()
    )
