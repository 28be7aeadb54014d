"""One build: the changes of the input are written to the index."""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence

from tqdm import tqdm

from gpt_core.common.errors import InputError
from index.building.options import BuildOptions
from index.building.reports import Outcome, print_counts, print_files
from index.building.survey import Survey
from index.building.target import Target
from index.index import Index
from index.reading.document import Document
from index.reading.log import ReadingLog
from index.reading.read import read_files
from index.store.files import FileDocument, is_gone
from index.store.write import Changes


def build(options: BuildOptions) -> None:
    """Build an index, or update it, and report what was done.

    Raises:
        InputError: for options that do not suit the index, or input that cannot be read; nothing is written then.
    """
    started = time.perf_counter()
    target = Target.of(options)
    survey = Survey.of(options, target)
    with target.opened() as index:
        outcome = update(index, options, survey)
        if options.refit_map:
            index.refit_map()
        index.save_snapshot()
        print_counts(index, outcome, time.perf_counter() - started)
        print_files(index, options, outcome)
        outcome.log.print_table(survey.found.files)


def update(index: Index, options: BuildOptions, survey: Survey) -> Outcome:
    """Write to `index` what `survey` found."""
    n_deleted = _delete(index, options.delete)
    checked = survey.checked
    names, longer = index.files.name(survey.found, checked.row_ids, checked.hashes)
    # The same reading decides what is written and what is missing: a file may change after it was checked.
    log, ids = ReadingLog(unread=dict(survey.unread), again=set(checked.log.again)), set(survey.kept)
    readable = [file for file in survey.changed if file.source not in survey.unread]
    rows = index.settings.rows_per_document
    documents = tqdm(
        _noting_ids(read_files(readable, names, log, rows, survey.kept), ids),
        "indexing",
        checked.n_documents,
        unit=" documents",
        disable=not sys.stderr.isatty(),
    )
    with documents:
        changes = index.upsert(documents) if readable else Changes()
    changes.unchanged += len(survey.kept)
    settled = [file for file in survey.changed if file.source not in log.again]
    index.files.remember(settled, survey.states, log.unread)
    missing = _missing(index.files.documents(), options.input, ids, log)
    if options.delete_missing:
        n_deleted += index.delete(missing)
        missing = []
    return Outcome(changes, n_deleted, missing, longer, log)


def _noting_ids(documents: Iterable[Document], ids: set[str]) -> Iterator[Document]:
    for document in documents:
        ids.add(document.id)
        yield document


def _delete(index: Index, paths: Sequence[str]) -> int:
    """Delete the documents of the files and folders `paths`; returns their number."""
    for path in paths:
        if not index.files.documents_below([path]):
            raise InputError(f"--delete {path}: the index has no document of such a file or folder.")
    return index.delete(index.files.documents_below(paths)) if paths else 0


def _missing(
    documents: Iterable[FileDocument], input: Sequence[str], ids: set[str], log: ReadingLog
) -> list[str]:
    """The ids of documents whose file is below the input, and which are not in `ids`, the documents that were read.

    A file that is there and could not be read keeps its documents.
    """
    below = [os.path.realpath(path) for path in input]
    return [
        one.id
        for one in documents
        if one.id not in ids
        and any(one.is_below(path) for path in below)
        and one.source not in log.unread
        and (is_gone(one.place) or os.access(one.place, os.R_OK))
    ]
