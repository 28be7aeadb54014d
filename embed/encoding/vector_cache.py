"""Disk cache of vectors, in the model cache: for teachers and for models of an evaluation."""

import hashlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from tqdm import tqdm

from embed.data.vectors import Vectors
from gpt_core.common.files import atomic_write
from gpt_core.hub.locate import cache_dir

TEXTS_PER_FILE = 4096  # also the most that an interruption loses
MAX_BYTES = 8 * 2**30  # of all files: five million vectors of 384 dimensions


def cached_vectors(
    identity: str, texts: Sequence[str], compute: Callable[[Sequence[str]], Vectors], name: str = ""
) -> Vectors:
    """The vectors of texts; only blocks of texts that are not in the cache are computed.

    When the cache exceeds `MAX_BYTES`, the files that were not used for the longest time are removed.

    Args:
        identity: everything that determines a vector except the text; part of the cache key.
        texts: any number of texts; a cache file contains the vectors of `TEXTS_PER_FILE`.
        compute: n texts → vectors (n, d) float32.
        name: label of the progress bar, which is drawn if stderr is a terminal; "": no bar.

    Returns:
        (n, d) float32; (0, 0) for no texts.
    """
    starts = range(0, len(texts), TEXTS_PER_FILE)
    bar = tqdm(starts, desc=name, unit=" blocks", disable=None if name else True, leave=False)
    parts = [_block(identity, texts[start : start + TEXTS_PER_FILE], compute) for start in bar]
    return np.concatenate(parts) if parts else np.empty((0, 0), dtype=np.float32)


def _block(identity: str, texts: Sequence[str], compute: Callable[[Sequence[str]], Vectors]) -> Vectors:
    digest = hashlib.sha256(identity.encode())
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    path = cache_dir() / "vectors" / f"{digest.hexdigest()}.npy"
    try:
        vectors = np.load(path)
        with suppress(OSError):  # a cache of another user
            os.utime(path)  # the time of the last use, for `_remove_oldest`
        return vectors
    except FileNotFoundError:
        pass
    except (ValueError, EOFError):  # the file is damaged; it is computed again and replaced
        print(f"{path} is damaged; computing its vectors again.", file=sys.stderr)
    vectors = compute(texts)
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.save(buffer, vectors)
    try:
        atomic_write(path, buffer.getvalue())
    except OSError as error:
        error.filename = error.filename or str(path)  # the message must name the cache, not out_dir
        raise
    _remove_oldest(path)
    return vectors


def _remove_oldest(newest: Path) -> None:
    """Remove the least recently used files until the cache has at most `MAX_BYTES`; `newest` always stays."""
    files = []
    for path in newest.parent.glob("*.npy"):  # not the temporary files that other processes are writing
        with suppress(FileNotFoundError):  # another process removed it
            files.append((path.stat().st_mtime_ns, path.stat().st_size, path))
    excess = sum(size for _, size, _ in files) - MAX_BYTES
    for _, size, path in sorted(files):
        if excess > 0 and path != newest:
            path.unlink(missing_ok=True)
            excess -= size
