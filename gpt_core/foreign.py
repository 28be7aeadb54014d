"""Checkpoints that are pickles: nothing in one is ever executed, only tensors and plain containers come out."""

import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt_core.errors import InputError


def read_bin(path: Path) -> dict[str, Tensor]:
    """The tensors of a `pytorch_model.bin`, under the names that the file gives them.

    Tensors of today's file format are mapped into memory, not copied.

    Raises:
        InputError: for a file that is damaged, holds anything but tensors, or would run code if it were let.
    """
    content = _unpickle(path)
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise InputError(f"{path} is not a table of named tensors; expected the weights of a model alone.")
    return dict(content)


def _unpickle(path: Path) -> Any:
    """What `torch.save` wrote to `path`, if it is made of tensors and plain values."""
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
