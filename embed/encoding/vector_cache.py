"""Vectors that were computed once, kept in the model cache: a teacher's, or an untrained model's in an evaluation."""

import hashlib
import io
import sys
from collections.abc import Callable, Sequence

import numpy as np
from tqdm import tqdm

from embed.data.vectors import Vectors
from gpt_core.common.files import atomic_write
from gpt_core.hub.locate import cache_dir

BLOCK = 4096  # texts to a file: what an interruption can cost


def cached_vectors(
    identity: str, texts: Sequence[str], compute: Callable[[Sequence[str]], Vectors], name: str = ""
) -> Vectors:
    """The vectors of texts, computed only where they are not in the cache.

    Args:
        identity: all that decides a vector, save the text.
        texts: any number of them; a file of the cache holds `BLOCK`.
        compute: texts (n) → vectors (n, d) float32.
        name: what the progress bar says; it is drawn when stderr is a terminal.

    Returns:
        (n, d) float32; (0, 0) of no texts.
    """
    starts = range(0, len(texts), BLOCK)
    bar = tqdm(starts, desc=name, unit=" blocks", disable=None if name else True, leave=False)
    parts = [_block(identity, texts[start : start + BLOCK], compute) for start in bar]
    return np.concatenate(parts) if parts else np.empty((0, 0), dtype=np.float32)


def _block(identity: str, texts: Sequence[str], compute: Callable[[Sequence[str]], Vectors]) -> Vectors:
    digest = hashlib.sha256(identity.encode())
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    path = cache_dir() / "vectors" / f"{digest.hexdigest()}.npy"
    try:
        return np.load(path)
    except FileNotFoundError:
        pass
    except (ValueError, EOFError):  # damaged; what is computed again replaces it
        print(f"{path} is damaged: computing its vectors anew.", file=sys.stderr)
    vectors = compute(texts)
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.save(buffer, vectors)
    try:
        atomic_write(path, buffer.getvalue())
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk is this one, not the training's
        raise
    return vectors
