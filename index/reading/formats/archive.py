"""Zip archives of documents: opened with a limit, so that a small file cannot fill the memory."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from index.reading.formats.extracted import Unreadable

MAX_UNPACKED = 1 << 30  # bytes; a document of a thousand pages has a few megabytes


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive at `path`. A member is never read beyond the size that the archive states.

    Raises:
        Unreadable: if it is damaged, or too large when it is unpacked.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
            if size > MAX_UNPACKED:
                raise Unreadable(
                    f"it unpacks to {size / 1e9:.1f} GB; the most is {MAX_UNPACKED / 1e9:.1f} GB."
                )
            yield archive
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise Unreadable(f"it is damaged, or no archive ({error}).") from None


def member(archive: zipfile.ZipFile, name: str) -> bytes:
    """The content of a member.

    Raises:
        Unreadable: if there is none of this name, or it is encrypted.
    """
    try:
        return archive.read(name)
    except KeyError:
        raise Unreadable(f"it has no part {name}.") from None
    except RuntimeError:
        raise Unreadable("it is encrypted.") from None
