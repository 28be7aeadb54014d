"""Documents from JSON lines."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt_core.common.errors import InputError
from gpt_core.common.jsonl import read_rows
from index.reading.document import Document


def read_jsonl(path: Path, name: str) -> Iterator[tuple[str, Document]]:
    """The documents of a file of JSON lines, each with its file and line."""
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
