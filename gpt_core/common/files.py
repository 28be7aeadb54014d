"""Atomic writes of files and folders (temporary name, fsync, rename), and checksums.

The kernel creates all of them with the permissions that the umask of the process allows.
"""

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from gpt_core.common.errors import InputError


def fsync_path(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def _report_path(path: Path) -> Iterator[None]:
    """Make an OSError name `path` instead of the temporary file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _beside(path: Path) -> Path:
    """A hidden name that nothing has yet, in the folder of `path`."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


@contextmanager
def atomic_open(path: str | Path) -> Iterator[BinaryIO]:
    """Open a temporary file for writing; rename it to `path` if the block succeeds, delete it if the block fails."""
    path = Path(path)
    temporary = _beside(path)
    with _report_path(path):
        file = open(temporary, "xb")  # noqa: SIM115 - closed below
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # Ctrl-C may come just after the rename
        raise
    fsync_path(path.parent)


def atomic_write(path: str | Path, content: str | bytes) -> None:
    """Replace the content of `path`; after a crash it has the old content or the new one. str is encoded as UTF-8."""
    with atomic_open(path) as f:
        f.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_folder(path: str | Path, *, replace: bool = True) -> Iterator[Path]:
    """Yield a temporary folder; rename it to `path` if the block succeeds, delete it if the block fails.

    An existing folder `path` is replaced by two renames. A crash between them leaves no `path`, so a folder that must
    always exist needs a new name for each version. Without `replace`, only an empty folder is replaced.

    Raises:
        FileExistsError: without `replace`, if `path` has entries when the temporary folder is renamed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    with _report_path(path):
        temporary.mkdir()
    try:
        yield temporary
        for item in sorted(temporary.rglob("*")):
            fsync_path(item)
        fsync_path(temporary)
        if not replace:
            _rename_to_new(temporary, path)
        elif path.exists():
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


def _rename_to_new(folder: Path, path: Path) -> None:
    try:
        with suppress(FileNotFoundError):
            path.rmdir()  # only an empty folder; Windows cannot rename to an existing one
        os.rename(folder, path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise FileExistsError(errno.EEXIST, "exists and is not empty", str(path)) from None
        raise


def require_empty_folder(folder: Path) -> None:
    """Check that an output folder is missing or empty.

    Raises:
        InputError: if it is not.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} already exists and is not empty; remove it or name another folder.")


def sha256_file(path: str | Path) -> str:
    """The sha256 of a file's content, in hex."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
