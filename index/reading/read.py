"""Documents and their readers: JSON lines (BEIR's keys), plain text, Markdown, folders of these."""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from gpt_core.common import files
from gpt_core.common.errors import InputError
from gpt_core.common.jsonl import JSONL, read_rows

TEXT = (".txt", ".md")
FRONT_MATTER = re.compile(r"---\r?\n(.*?\r?\n)---\r?\n", re.DOTALL)
FENCE = re.compile(r"^(```|~~~).*?^\1", re.DOTALL | re.MULTILINE)
HEADING = re.compile(r"^#{1,6}[ \t]+(.+?)[ \t]*#*[ \t\r]*$", re.MULTILINE)


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


def iter_documents(paths: Sequence[str | Path]) -> Iterator[Document]:
    """Read documents from files and folders, in a fixed order.

    A `.jsonl` (`.gz`, `.xz`) file holds one JSON object a line: `text`; optionally `title`, and `_id` or `id`, without
    which a document is called `<file>:<line>`; metadata are the object `metadata` and all other keys. A `.txt` or
    `.md` file is one document, named by its path below the folder that was given; its title is the first heading or
    the front matter's `title`, else the file's name. See `list_files` for folders.

    Raises:
        InputError: for a path that `list_files` refuses, a broken line (its number), a file that is not UTF-8 text,
            or an id that comes twice. Documents before it have been yielded by then.
    """
    seen: set[str] = set()
    for path, name in list_files(paths)[0]:
        documents = _read_jsonl(path, name) if path.name.endswith(JSONL) else _read_text(path, name)
        for place, document in documents:
            if document.id in seen:
                other = f"another document has the id {document.id!r} already"
                raise InputError(f"{place}: {other}; a file's id is its path below the folder that is given.")
            seen.add(document.id)
            yield document


def list_files(paths: Sequence[str | Path]) -> tuple[list[tuple[Path, str]], list[Path]]:
    """The files to read, each with its path below what was given, and the files in folders that are of no known kind.

    Folders are walked to the bottom in sorted order, without hidden entries. Of a BEIR folder (one that holds a corpus
    and queries) only the corpus is read.

    Raises:
        InputError: for a path that is missing or of no known kind, or a folder in which there is nothing to read.
    """
    return files.list_files(paths, (*JSONL, *TEXT), _without_queries)


def _without_queries(names: list[str]) -> list[str]:
    stems = {name.split(".")[0] for name in names if name.endswith(JSONL)}
    return [name for name in names if name.startswith("corpus.")] if {"corpus", "queries"} <= stems else names


def _read_jsonl(path: Path, name: str) -> Iterator[tuple[str, Document]]:
    for place, row in read_rows(path):
        yield place, _document(row, place, f"{name}:{place.rpartition(' ')[2]}", str(path))


def _document(row: dict[str, Any], place: str, default_id: str, source: str) -> Document:
    if not isinstance(row.get("text"), str):
        raise InputError(f'{place}: expected a JSON object with the key "text" and a string there.')
    name = row.pop("_id" if "_id" in row else "id", default_id)
    title, metadata = row.pop("title", None) or "", row.pop("metadata", None) or {}
    if not isinstance(metadata, dict) or not isinstance(name, str | int):
        raise InputError(
            f"{place}: expected metadata to be an object, and the id a string or a whole number."
        )
    try:
        return Document(str(name), row.pop("text"), title, {**row, **metadata}, source)
    except InputError as error:
        raise InputError(f"{place}: {error}") from None


def _read_text(path: Path, name: str) -> Iterator[tuple[str, Document]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")  # line ends as they are, so that offsets fit the source
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}.") from None
    if "\0" in text:
        raise InputError(f"{path} is not text: it holds a zero byte.")
    title, metadata = _markdown_head(text) if path.suffix == ".md" else ("", {})
    title = title or (path.stem if text.strip() else "")  # an empty file's name is nothing to find
    yield str(path), Document(name, text, title, metadata, str(path))


def _markdown_head(text: str) -> tuple[str, dict[str, Any]]:
    """The title and the front matter's fields; the text itself keeps both."""
    metadata: dict[str, Any] = {}
    if front := FRONT_MATTER.match(text):
        try:
            loaded = _as_json(yaml.safe_load(front[1]))
        # A text that begins with a rule, not with front matter; a date that is none; an alias of what it is in.
        except (yaml.YAMLError, ValueError, RecursionError):
            loaded = None
        if isinstance(loaded, dict):
            metadata = loaded
    heading = HEADING.search(FENCE.sub("", text[front.end() if front else 0 :]))
    return str(metadata.pop("title", None) or (heading[1] if heading else "")), metadata


def _as_json(value: Any) -> Any:
    """What YAML read, with the keys and values that JSON lacks, such as dates, as strings."""
    if isinstance(value, dict):
        return {str(key): _as_json(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_as_json(one) for one in value]
    known = (
        value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
    )
    return value if known else str(value)
