"""What a reader of a format returns, and the error that it raises."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt_core.common.errors import InputError
from gpt_core.common.extras import MissingPackage
from index.reading.pages import Pages


class Unreadable(InputError):
    """The file is damaged, encrypted, empty or of another format than its name says."""


@dataclass(frozen=True)
class Extracted:
    """The text of a file.

    Attributes:
        text: Markdown.
        title: "" if the file has none.
        metadata: fields for filters.
        pages: where the pages or slides begin in `text`; None for a format without any.
    """

    text: str
    title: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    pages: Pages | None = None


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Context for reading a file: errors name it, and it must not change meanwhile.

    Raises:
        Unreadable: if it cannot be read.
        MissingPackage: if its format needs a package that is not installed.
    """
    before = _state(path)
    try:
        yield
    except MissingPackage as error:
        raise MissingPackage(f"{path}: {error}") from None
    except Unreadable as error:
        raise Unreadable(f"{path}: {error}") from None
    except (OSError, InputError):
        raise
    except Exception as error:  # the libraries that read formats raise anything for a damaged file
        raise Unreadable(f"{path}: it is damaged ({type(error).__name__}: {str(error)[:100]}).") from None
    if _state(path) != before:
        raise Unreadable(f"{path}: it changed while it was read; try again.")


def _state(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns
