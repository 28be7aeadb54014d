"""What a reader of a format returns, and the error that it raises."""

from dataclasses import dataclass, field
from typing import Any

from gpt_core.common.errors import InputError
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
