"""What to say when a training runs out of disk or memory."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gpt_core.common.errors import InputError

CPU_IS_FULL = "can't allocate memory"  # in torch's error, which for GPUs has a type of its own


@contextmanager
def shortage_named(out_dir: str, memory: str) -> Iterator[None]:
    """Round a training: say in one sentence what is short, and how to mend it.

    Args:
        out_dir: where the training saves.
        memory: the sentence for too little memory.

    Raises:
        OSError: of a full disk that names no file, with `out_dir` instead.
        InputError: `memory`, where there is too little.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or error.filename is not None:
            raise
        reason = f"{os.strerror(error.errno)}; the last checkpoint stays: make room and start again"
        raise OSError(error.errno, reason, out_dir) from error
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and CPU_IS_FULL not in str(error):
            raise
        raise InputError(memory) from error
