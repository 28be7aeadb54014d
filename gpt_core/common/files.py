"""Files that are either whole or not there (temporary name, fsync, rename), and lists of files to read."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from gpt_core.common.errors import InputError


def fsync_path(path: Path) -> None:
    """Force a file's content, or a directory's entries, onto the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let an error name `path` rather than what is made beside it."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def atomic_open(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for writing that becomes `path` when the block ends well, and vanishes when it does not."""
    path = Path(path)
    with _naming(path):
        fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's files are for their owner alone
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)  # Ctrl-C may come just after the renaming
        raise
    fsync_path(path.parent)


def atomic_write(path: str | Path, content: str | bytes) -> None:
    """Replace `path` by `content`; a crash at any moment leaves the old file or the new one."""
    with atomic_open(path) as f:
        f.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends well, and vanishes when it does not.

    A folder that stands at `path` already is replaced; between the two renames a crash leaves neither, so keep what
    must never be missing under a name of its own.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _naming(path):
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        os.chmod(temporary, 0o755)
        for item in sorted(temporary.rglob("*")):
            fsync_path(item)
        fsync_path(temporary)
        if path.exists():
            old = temporary.with_name(f"{temporary.name}.old")
            os.replace(path, old)
            os.replace(temporary, path)
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_path(path.parent)


def refuse_used(folder: Path) -> None:
    """Make sure that a folder to be made is missing or empty.

    Raises:
        InputError: if there is something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} already holds something; remove it or name another folder.")


def sha256_file(path: str | Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
