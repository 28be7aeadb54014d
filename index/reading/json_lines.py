"""Documents from JSON lines."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from gpt_core.common.errors import InputError
from gpt_core.common.jsonl import read_rows
from index.reading.document import Document
from index.reading.log import ReadingLog
from index.reading.source_files import SourceFile

HASH_DIGITS = (
    16  # of the content hash in an id; two of a million lines have the same with a probability of 3e-8
)


def read_jsonl(file: SourceFile, name: str, log: ReadingLog) -> Iterator[tuple[str, Document]]:
    """Yield the documents of a JSON lines file, each with its file and line number for error messages.

    A line without an id is named by its content, `<name>:<hash>`, so that its id does not depend on the lines before
    it. Equal lines without ids are one document; the others are counted in `log`.
    """
    hashes: set[str] = set()
    for place, row in read_rows(file.path):
        has_id = "_id" in row or "id" in row
        document = _document(row, place, name, file.source)
        if not has_id:
            if document.hash in hashes:
                log.repeated += 1
                continue
            hashes.add(document.hash)
            document = replace(document, id=f"{name}:{document.hash[:HASH_DIGITS]}")
        yield place, document


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
