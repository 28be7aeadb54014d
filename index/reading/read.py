"""Read documents from JSON lines (BEIR's keys), plain text and Markdown files, and folders of these."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from gpt_core.common.errors import InputError
from index.reading.document import Document
from index.reading.json_lines import read_jsonl
from index.reading.log import ReadingLog
from index.reading.markdown import NotText, read_text_file
from index.reading.source_files import SourceFile, find_files, name_files


def iter_documents(paths: Sequence[str | Path]) -> Iterator[Document]:
    """Read documents from files and folders, in a fixed order.

    A `.jsonl` (`.gz`, `.xz`) file has one JSON object per line: `text`; optionally `title`, and `_id` or `id` (by
    default `<file>:<hash of the content>`, so equal lines are one document); metadata are the object `metadata` and all
    other keys. A `.txt`, `.md` or `.markdown` file is one document. Its id is its path relative to the given folder,
    with parts of the folder's path in front if another file of this call has that id. Its title is the front matter's
    `title`, else the first heading, else the file's name. Files in folders that cannot be read are named on stderr. See
    `find_files` for folders.

    The ids are those of a new index. `build_index` names files as they are named in its index, so that a file of
    another folder never replaces a document.

    Raises:
        InputError: for a path that `find_files` rejects, a malformed line (with its number), a given file that is not
            UTF-8 text, or a duplicate id. The documents before the error have been yielded by then.
    """
    found = find_files(paths)
    names, _ = name_files(found.files, found.roots, {}, lambda file, name: True)
    log = ReadingLog()
    yield from read_files(found.files, names, log)
    log.report()


def read_files(files: Iterable[SourceFile], names: Mapping[str, str], log: ReadingLog) -> Iterator[Document]:
    """Read the documents of `files`; `names` are the files' names by source.

    Raises:
        InputError: as `iter_documents` does.
    """
    seen: set[str] = set()
    for file in files:
        name = names[file.source]
        read = read_jsonl if file.has_rows else read_text_file
        try:
            for place, document in read(file, name, log):
                if document.id in seen:
                    raise InputError(
                        f"{place}: another document has the id {document.id!r}; give each document a unique id "
                        "(a file's id is its path relative to the given folder)."
                    )
                seen.add(document.id)
                yield document
        except (OSError, NotText) as error:
            if file.given:
                raise
            reason = f"{file.path}: {error.strerror}" if isinstance(error, OSError) else str(error)
            log.unread[file.source] = reason.rstrip(".")
