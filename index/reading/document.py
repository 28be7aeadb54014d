"""The class `Document`, and the ids of its passages."""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from gpt_core.common.errors import InputError
from index.reading.pages import Pages


@dataclass(frozen=True)
class Document:
    """A text with an id, a title and metadata.

    Attributes:
        id: unique within an index.
        text: the extracted text; passage offsets count its Unicode code points.
        title: put before each passage for embedding and lexical search.
        metadata: fields for filters; any JSON-serialisable values.
        source: real path of the file that the document was read from, "" if none; not part of the content hash.
        pages: where the pages of the text begin, None if it has none; not part of the content hash.

    Raises:
        InputError: for an empty id, metadata that JSON cannot represent, or text that is not valid Unicode.
    """

    id: str
    text: str
    title: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    pages: Pages | None = None

    def __post_init__(self) -> None:
        if not all(isinstance(value, str) for value in (self.id, self.text, self.title)) or not self.id:
            raise InputError(
                f"document {self.id!r}: expected id, text and title to be strings, and the id not to be empty."
            )
        try:
            (self.id + self.title + self.text + self.metadata_json).encode()
        except UnicodeEncodeError as error:
            character = error.object[error.start]
            raise InputError(
                f"document {self.id!r} has an unpaired surrogate {character!r}; expected Unicode text."
            ) from None

    @cached_property
    def metadata_json(self) -> str:
        """The metadata as canonical JSON: sorted keys, no escapes."""
        try:
            return json.dumps(self.metadata, sort_keys=True, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(f"document {self.id!r}: JSON cannot represent its metadata: {error}") from None

    @cached_property
    def hash(self) -> str:
        """sha256 of title, text and metadata; a document has changed if its hash has."""
        return self.content_hash(self.title, self.text, self.metadata_json)

    @staticmethod
    def content_hash(title: str, text: str, metadata_json: str) -> str:
        """`hash` of a document with this content."""
        content = json.dumps([title, text, metadata_json], ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()


def passage_id(doc_id: str, start: int, end: int) -> str:
    """The id of a passage: `<document id>#<start>-<end>`."""
    return f"{doc_id}#{start}-{end}"
