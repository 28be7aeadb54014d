"""The second pass over the input: the documents that are written, and those of the index that the input lacks."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

from gpt_core.common.errors import InputError
from gpt_core.common.progress import progress
from index.building.survey import Survey
from index.reading.document import Document
from index.reading.log import ReadingLog
from index.reading.read import read_files
from index.reading.source_files import Below
from index.store.files import FileDocument, Files, is_gone


class SecondPass:
    """Reads what a survey found to have changed.

    A file may change after the first pass, so what this pass reads decides what is written and what is missing.

    Attributes:
        files: the files that are read.
        log: what was read and what was not.
        ids: ids of the documents of the input, of unchanged files, too.
    """

    def __init__(self, survey: Survey) -> None:
        self.files = [file for file in survey.changed if file.source not in survey.unread]
        self.log = ReadingLog(unread=dict(survey.unread), again=set(survey.checked.log.again))
        self.ids = set(survey.kept)
        self._survey = survey

    def documents(self, names: Mapping[str, str], rows: int) -> Iterator[Document]:
        """The documents of the files, while stderr shows the progress.

        Args:
            names: the files' names, by source.
            rows: rows of a table that are one document.
        """
        read = self._noting_ids(read_files(self.files, names, self.log, rows, self._survey.kept))
        return progress(read, "indexing", self._survey.checked.n_documents, "documents", self.log.skipped)

    def _noting_ids(self, documents: Iterable[Document]) -> Iterator[Document]:
        for document in documents:
            self.ids.add(document.id)
            yield document

    def missing(self, documents: Iterable[FileDocument], below: Below) -> list[str]:
        """The ids of those of `documents` whose file is `below` the input, and which were not read.

        A file that is there and could not be read keeps its documents.
        """
        return [
            one.id
            for one in documents
            if one.id not in self.ids
            and one.is_in(below)
            and one.source not in self.log.unread
            and (is_gone(one.place) or os.access(one.place, os.R_OK))
        ]


def to_delete(files: Files, paths: Sequence[str]) -> list[FileDocument]:
    """The documents of the files and folders `paths`.

    Raises:
        InputError: for a path without any.
    """
    for path in paths:
        if not files.documents_below([path]):
            raise InputError(f"--delete {path}: the index has no document of such a file or folder.")
    return files.documents_below(paths)
