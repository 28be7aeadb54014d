"""Read documents from files of many formats, and from folders of these."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from gpt_core.common.errors import InputError
from gpt_core.common.list_files import has_ending
from index.reading.document import Document
from index.reading.extract import CODE, extract
from index.reading.log import ReadingLog
from index.reading.markdown import MARKDOWN, first_heading, read_markdown
from index.reading.rows import read_rows_of
from index.reading.source_files import SourceFile, find_files, name_files


class DuplicateId(InputError):
    """Two documents have the same id."""


def iter_documents(paths: Sequence[str | Path]) -> Iterator[Document]:
    """Read documents from files and folders, in a fixed order.

    A `.jsonl` (`.gz`, `.xz`) file has one JSON object per line: `text`; optionally `title`, and `_id` or `id` (by
    default `<file>:<hash of the content>`, so equal lines are one document); metadata are the object `metadata` and all
    other keys. Each row of a table (CSV, TSV, Parquet, spreadsheets) is a document, too: like such a line if it has a
    column `text`, else its text has a line for each column, and all columns are metadata.

    Every other file is one document, whose text is Markdown: text, Markdown, HTML, PDF, Word, PowerPoint, OpenDocument,
    RTF, EPUB, Jupyter notebooks, source code. Its id is its path relative to the given folder, with parts of the
    folder's path in front if another file of this call has that id. Its title is its own, else its first heading, else
    the file's name. Files in folders that cannot be read are named on stderr. See `find_files` for folders.

    The ids are those of a new index. `build_index` names files as they are named in its index, so that a file of
    another folder never replaces a document.

    Raises:
        InputError: for a path that `find_files` rejects, a given file that cannot be read (a malformed line with its
            number), or a duplicate id. The documents before the error have been yielded by then.
    """
    found = find_files(paths)
    names, _ = name_files(found.files, found.roots, {}, lambda file, name: True)
    log = ReadingLog()
    yield from read_files(found.files, names, log)
    log.report(found.files)


def read_files(
    files: Iterable[SourceFile],
    names: Mapping[str, str],
    log: ReadingLog,
    rows_per_document: int = 1,
    taken: Iterable[str] = (),
) -> Iterator[Document]:
    """Read the documents of `files`.

    Args:
        files: the files.
        names: the files' names by source.
        log: notes what was read and what was not.
        rows_per_document: rows of a table that are one document, unless it has a column `text`.
        taken: ids of documents of other files, which none of these may have.

    Raises:
        InputError: as `iter_documents` does.
    """
    seen = set(taken)
    for file in files:
        name = names[file.source]
        read = (
            read_rows_of(file, name, log, rows_per_document)
            if file.has_rows
            else _read_whole(file, name, log)
        )
        try:
            for place, document in read:
                if document.id in seen:
                    raise DuplicateId(
                        f"{place}: another document has the id {document.id!r}; give each document a unique id "
                        "(a file's id is its path relative to the given folder)."
                    )
                seen.add(document.id)
                yield document
            log.read.add(file.source)
        except DuplicateId:
            raise
        except (OSError, InputError) as error:
            if file.given:
                raise
            log.note_unread(file.source, file.path, error)


def _read_whole(file: SourceFile, name: str, log: ReadingLog) -> Iterator[tuple[str, Document]]:
    """Yield a file that is one document, with its path for error messages."""
    found, encoding = extract(file.path)
    log.note_encoding(file.path, encoding)
    text, title, metadata = found.text, found.title, found.metadata
    if has_ending(file.path, MARKDOWN):
        text, title, metadata = read_markdown(text, file.path, log)
    elif not title and not has_ending(file.path, (".txt", ".pdf", *CODE)):
        title = first_heading(text)
    if not title and text.strip():  # an empty file has no title either
        title = name if has_ending(file.path, CODE) else Path(file.source).stem
    yield str(file.path), Document(name, text, title, metadata, file.source, found.pages)
