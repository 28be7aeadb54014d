"""Turn out-of-memory and disk-full errors into one-line messages."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gpt_core.common.errors import InputError

OOM_MESSAGE = "can't allocate memory"  # in torch's RuntimeError; for GPUs torch has an exception class


@contextmanager
def explain_full_memory_or_disk(out_dir: str, memory: str) -> Iterator[None]:
    """Context manager around a training run: replaces out-of-memory and disk-full errors by one-sentence messages.

    Args:
        out_dir: folder of the run.
        memory: message if memory runs out.

    Raises:
        OSError: with `out_dir` as file name, if the disk is full and the original error names no file.
        InputError: with the message `memory`, if memory runs out.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or error.filename is not None:
            raise
        reason = f"{os.strerror(error.errno)}; the last checkpoint is intact: free disk space and start again"
        raise OSError(error.errno, reason, out_dir) from error
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and OOM_MESSAGE not in str(error):
            raise
        raise InputError(memory) from error
