"""Files that may be compressed, by their ending .gz or .xz."""

import gzip
import lzma
import zlib
from pathlib import Path
from typing import Any, BinaryIO, TextIO

# What reading a damaged archive raises
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError)


def open_bytes(path: Path, raw: BinaryIO | None = None) -> Any:
    """Open a file for reading bytes; `raw`: the file, opened already, whose position tells the progress."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.open(raw or path, "rb")
    if suffix == ".xz":
        return lzma.open(raw or path, "rb")
    return raw or open(path, "rb")


def open_text(path: Path, newline: str | None = None) -> TextIO:
    """Open a file for reading UTF-8; a byte order mark is skipped. `newline`: as for `open`."""
    opened: Any = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix.lower(), open)
    return opened(path, "rt", encoding="utf-8-sig", newline=newline)
