"""Documents and their readers: JSON lines (BEIR's keys), plain text, Markdown, folders of these."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from gpt_core.common import list_files as folders
from gpt_core.common.errors import InputError
from gpt_core.common.jsonl import JSONL
from index.reading.document import Document
from index.reading.json_lines import read_jsonl
from index.reading.markdown import read_text_file

TEXT = (".txt", ".md")


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
        documents = read_jsonl(path, name) if path.name.endswith(JSONL) else read_text_file(path, name)
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
    return folders.list_files(paths, (*JSONL, *TEXT), _without_queries)


def _without_queries(names: list[str]) -> list[str]:
    stems = {name.split(".")[0] for name in names if name.endswith(JSONL)}
    return [name for name in names if name.startswith("corpus.")] if {"corpus", "queries"} <= stems else names
