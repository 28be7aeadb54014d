"""Documents from JSON lines."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt_core.common.errors import InputError
from gpt_core.common.jsonl import read_rows
from index.reading.document import Document


def read_jsonl(path: Path, name: str) -> Iterator[tuple[str, Document]]:
    """Yield the documents of a JSON lines file, each with its file and line number for error messages."""
    for place, row in read_rows(path):
        yield place, _document(row, place, f"{name}:{place.rpartition(' ')[2]}", str(path))


def _document(row: dict[str, Any], place: str, default_id: str, source: str) -> Document:
    if not isinstance(row.get("text"), str):
        raise InputError(f'{place}: expected a JSON object whose key "text" is a string.')
    name = row.pop("_id" if "_id" in row else "id", default_id)
    title, metadata = row.pop("title", None) or "", row.pop("metadata", None) or {}
    if not isinstance(metadata, dict) or not isinstance(name, str | int):
        raise InputError(
            f"{place}: expected metadata to be an object, and the id to be a string or an integer."
        )
    try:
        return Document(str(name), row.pop("text"), title, {**row, **metadata}, source)
    except InputError as error:
        raise InputError(f"{place}: {error}") from None
