"""Read documents from JSON lines (BEIR's keys), plain text and Markdown files, and folders of these."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from gpt_core.common import list_files as folders
from gpt_core.common.errors import InputError
from gpt_core.common.jsonl import JSONL
from index.reading.document import Document
from index.reading.json_lines import read_jsonl
from index.reading.markdown import read_text_file

TEXT_SUFFIXES = (".txt", ".md")


def iter_documents(paths: Sequence[str | Path]) -> Iterator[Document]:
    """Read documents from files and folders, in a fixed order.

    A `.jsonl` (`.gz`, `.xz`) file has one JSON object per line: `text`; optionally `title`, and `_id` or `id`
    (`<file>:<line>` by default); metadata are the object `metadata` and all other keys. A `.txt` or `.md` file is one
    document. Its id is its path relative to the given folder; its title is the front matter's `title`, else the first
    heading, else the file's name. See `list_files` for folders.

    Raises:
        InputError: for a path that `list_files` rejects, a malformed line (with its number), a file that is not UTF-8
            text, or a duplicate id. The documents before the error have been yielded by then.
    """
    seen: set[str] = set()
    for path, name in list_files(paths)[0]:
        documents = read_jsonl(path, name) if path.name.endswith(JSONL) else read_text_file(path, name)
        for place, document in documents:
            if document.id in seen:
                other = f"another document has the id {document.id!r}; give each document a unique id"
                raise InputError(f"{place}: {other} (a file's id is its path relative to the given folder).")
            seen.add(document.id)
            yield document


def list_files(paths: Sequence[str | Path]) -> folders.Listing:
    """List the files to read, each with its path relative to the given folder, and the skipped files.

    Folders are searched recursively in sorted order, without hidden entries; files of unsupported types are skipped. Of
    a BEIR folder (one with a corpus and queries) only the corpus is read.

    Raises:
        InputError: for a missing path, a file of an unsupported type, or a folder without readable files.
    """
    return folders.list_files(paths, (*JSONL, *TEXT_SUFFIXES), _without_queries)


def _without_queries(names: list[str]) -> list[str]:
    stems = {name.split(".")[0] for name in names if name.endswith(JSONL)}
    return [name for name in names if name.startswith("corpus.")] if {"corpus", "queries"} <= stems else names
