"""A document, whatever file it comes from."""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from gpt_core.common.errors import InputError


@dataclass(frozen=True)
class Document:
    """A text with a name.

    Attributes:
        id: unique within an index.
        text: the extracted text; a passage's offsets count its Unicode code points.
        title: put before each passage when that is embedded or searched for words.
        metadata: fields that a filter can ask for; anything that JSON can hold.
        source: the file that it came from; no part of its content.

    Raises:
        InputError: for an empty id, metadata that JSON cannot hold, or text that is not valid Unicode.
    """

    id: str
    text: str
    title: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    source: str = ""

    def __post_init__(self) -> None:
        if not all(isinstance(value, str) for value in (self.id, self.text, self.title)) or not self.id:
            raise InputError(
                f"document {self.id!r}: expected id, text and title to be strings, the id not empty."
            )
        try:
            (self.id + self.title + self.text + self.metadata_json).encode()
        except UnicodeEncodeError as error:
            character = error.object[error.start]
            raise InputError(f"document {self.id!r} holds {character!r}, half of a surrogate pair.") from None

    @cached_property
    def metadata_json(self) -> str:
        """The metadata in one spelling: sorted keys, no escapes."""
        try:
            return json.dumps(self.metadata, sort_keys=True, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(f"document {self.id!r}: JSON cannot hold its metadata: {error}") from None

    @cached_property
    def hash(self) -> str:
        """sha256 over title, text and metadata: what decides whether a document has changed."""
        content = json.dumps([self.title, self.text, self.metadata_json], ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()
