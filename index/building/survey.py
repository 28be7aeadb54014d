"""The first pass over the input: which files there are, which of them have changed, and whether they can be read."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain

from gpt_core.common.errors import InputError
from gpt_core.common.progress import progress
from index.building.options import BuildOptions
from index.building.target import Target
from index.reading.log import ReadingLog
from index.reading.read import read_files
from index.reading.source_files import Below, FoundFiles, SourceFile, find_files
from index.store.files import Files, FileState, Unchanged, states
from index.store.store import Store

# Another number after a change to what is read from files, so that unchanged files are read again.
READING = 2


@dataclass(frozen=True)
class Checked:
    """What the first reading of the input found.

    Attributes:
        n_documents: their number.
        any_text: whether one of them has a text or a title.
        row_ids: the ids of documents that are rows.
        hashes: content hashes of the other documents, by source.
        log: what was read and what was not.
    """

    n_documents: int
    any_text: bool
    row_ids: set[str]
    hashes: dict[str, str]
    log: ReadingLog


@dataclass(frozen=True)
class Survey:
    """What a build has to do.

    Attributes:
        found: the files.
        states: what tells whether a file is written again, by source; taken before the files were read.
        changed: the files that are to be read.
        kept: ids of the documents of the others.
        unread: why files could not be read, now or before, by source.
        checked: what the first reading of `changed` found.
    """

    found: FoundFiles
    states: Mapping[str, FileState]
    changed: list[SourceFile]
    kept: list[str]
    unread: dict[str, str]
    checked: Checked

    @classmethod
    def of(cls, options: BuildOptions, target: Target, only: Below | None = None) -> "Survey":
        """Read the input and report what is left out.

        Args:
            options: the options of the build.
            target: the index.
            only: look only at these files of the input, of which there may be none; None: at all.

        Raises:
            InputError: for a given file that cannot be read, input without text, or, if `options.strict`, any file that
                cannot be read.
        """
        found = find_files(
            options.input,
            options.include,
            options.exclude,
            options.gitignore,
            outside=options.index,
            only=only,
        )
        found.listing.report()
        rows = target.settings.rows_per_document
        now = states(found.files, f"reading {READING} rows {rows}")
        # After a deletion, the documents of unchanged files may be gone.
        unchanged = Unchanged({}, {}) if target.is_new or options.delete else _unchanged(target, now)
        kept = list(chain.from_iterable(unchanged.documents.values()))
        again = {
            file.source for file in found.files if options.strict or file.given
        } & unchanged.unread.keys()
        same = (unchanged.documents.keys() | unchanged.unread.keys()) - again
        changed = [file for file in found.files if file.source not in same]
        checked = _check(changed, rows)
        log = checked.log
        log.report(changed)
        if options.strict and log.unread:
            raise InputError(f"{log.problems(changed)[0]}. Leave out --strict to skip such files.")
        may_be_empty = not options.input or only or (options.delete_missing and not target.is_new)
        if not kept and not checked.any_text and not may_be_empty:
            raise InputError(
                f"{', '.join(options.input)}: no text found; expected at least one document with text."
            )
        return cls(found, now, changed, kept, unchanged.unread | log.unread, checked)


def _unchanged(target: Target, now: Mapping[str, FileState]) -> Unchanged:
    with closing(Store(target.folder)) as store:
        return Files(store).unchanged(now)


def _check(files: Sequence[SourceFile], rows: int) -> Checked:
    """Read `files`, of whose tables so many `rows` are one document."""
    log, n_documents, any_text = ReadingLog(), 0, False
    row_ids: set[str] = set()
    hashes: dict[str, str] = {}
    with_rows = {file.source for file in files if file.has_rows}
    # Files have no names yet, and a row's id may be equal to the name that a file gets: paths stand in for names.
    read = read_files(files, {file.source: file.source for file in files}, log, rows)

    def so_far() -> str:
        done = f"{len(log.read) + len(log.unread):,} of {len(files):,} files"
        return f"{done}, {skipped}" if (skipped := log.skipped()) else done

    for document in progress(read, "checking", None, "documents", so_far):
        n_documents += 1
        any_text = any_text or bool(document.text.strip() or document.title.strip())
        if document.source in with_rows:
            row_ids.add(document.id)
        else:
            hashes[document.source] = document.hash
    return Checked(n_documents, any_text, row_ids, hashes, log)
