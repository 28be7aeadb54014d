"""The command that builds or updates an index."""

import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from embed.encoding.encoder import Encoder
from embed.network.config import Fusion, FusionKind
from gpt_core.common.errors import InputError
from gpt_core.hub.locate import DEFAULT_EMBEDDER
from index.dense.ann import FLAT
from index.dense.manifest import describe
from index.index import Index
from index.reading.document import Document
from index.reading.log import ReadingLog
from index.reading.read import read_files
from index.reading.source_files import FoundFiles, SourceFile, find_files
from index.store.files import FileDocument, Files, Unchanged, is_gone, states
from index.store.store import FILE, Store
from index.store.write import Changes

# Another number after a change to what is read from files, so that unchanged files are read again.
READING = 1


def build_index(
    *,
    index: str,
    input: tuple[str, ...] = (),
    include: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
    gitignore: bool = False,
    embedder: str | None = None,
    max_tokens: int | None = None,
    overlap: int | None = None,
    passages_per_document: int | None = None,
    rows_per_document: int | None = None,
    fusion: FusionKind | None = None,
    refit_map: bool = False,
    delete_missing: bool = False,
    delete: tuple[str, ...] = (),
    strict: bool = False,
    faiss: str | None = None,
    recall: float | None = None,
) -> None:
    """Build an index of documents, or update an existing one.

    New documents are added, changed ones replaced, unchanged ones skipped. To continue an interrupted build, run it
    again. The input is read once before anything is written, so that a malformed line is reported at the start. Files
    in folders that cannot be read are named on stderr and left out; their documents are kept, and the exit status is 0.

    A file is recognised by its real path, however it is given, so that files of the same name in several folders are
    different documents. A document's id is the file's path below the folder that was given, or longer if another file
    has that id already.

    Args:
        index: folder of the index.
        input: files and folders: text, Markdown, HTML, PDF, Word, PowerPoint, OpenDocument, RTF, EPUB, Jupyter
            notebooks, source code; .jsonl (also .gz, .xz; "text", optionally "_id", "title"; other keys are metadata);
            rows of CSV, TSV, Parquet and spreadsheets; folders are searched recursively.
        include: read only those files of folders that match a pattern, written as in a .gitignore file: *.pdf, docs/.
        exclude: do not read files of folders that match a pattern.
        gitignore: do not read what the .gitignore files in the folders leave out.
        embedder: model folder or known name; default: the existing index's embedder, or zhizhi-mini.
        max_tokens: maximum tokens per passage, without the title; fixed when the index is created, 256 by default.
        overlap: maximum tokens that neighbouring passages share; fixed when the index is created, max_tokens / 8 by
            default.
        passages_per_document: index only the first n passages of each document; fixed when the index is created.
        rows_per_document: rows of a table without a column `text` that are one document; fixed when the index is
            created, 1 by default.
        fusion: how hybrid search combines the dense and lexical scores; fixed when the index is created; default: the
            embedder's.
        refit_map: fit the corpus map (whitening) again at the end; in a new index it is always fitted.
        delete_missing: delete the documents of files and lines that are below the input no longer. Documents from
            elsewhere are kept.
        delete: files and folders whose documents are deleted first; they need not exist any more.
        strict: stop at a file that cannot be read, before anything is written.
        faiss: how the vectors are searched: auto (exactly up to 200 MB of them), Flat (exactly), or a FAISS factory
            string such as IVF1024,SQ8; kept in the index.
        recall: least share of the nearest passages that approximate search must find, .95 by default; kept in the
            index.
    """
    started = time.perf_counter()
    if not input and not delete:
        raise InputError("--input is empty; give at least one file or folder.")
    if delete and not (Path(index) / FILE).exists():
        raise InputError(f"{index} has no index, so --delete has nothing to delete.")
    if rows_per_document is not None and rows_per_document < 1:
        raise InputError(f"rows_per_document is {rows_per_document}; expected at least 1.")
    found = find_files(input, include, exclude, gitignore)
    found.listing.report()
    rows, unchanged = _unchanged(Path(index), found, rows_per_document, by_deletion=bool(delete))
    before = states(found.files, _how(rows))
    kept = list(chain.from_iterable(unchanged.documents.values()))
    read_again = {file.source for file in found.files if strict or file.given} & unchanged.unread.keys()
    same = (unchanged.documents.keys() | unchanged.unread.keys()) - read_again
    changed = [file for file in found.files if file.source not in same]
    checked = _check(
        input, changed, rows, kept, strict, may_be_empty=delete_missing and (Path(index) / FILE).exists()
    )
    unread = unchanged.unread | checked.unread

    fixed = {
        "max_tokens": max_tokens,
        "overlap": overlap,
        "passages_per_document": passages_per_document,
        "rows_per_document": rows_per_document,
    }
    given = {name: value for name, value in fixed.items() if value is not None}
    with _opened(Path(index), embedder, given, fusion) as built:
        if faiss is not None or recall is not None:
            built.set_faiss(faiss, recall)
        n_deleted = _delete(built, delete)
        names, longer = built.files.name(found, checked.row_ids, checked.hashes)
        # The same reading decides what is written and what is missing: a file may change after it was checked.
        log, ids = ReadingLog(unread=dict(unread), again=set(checked.again)), set(kept)
        readable = [file for file in changed if file.source not in unread]
        quiet = not sys.stderr.isatty()
        documents = tqdm(
            _noting_ids(read_files(readable, names, log, rows, kept), ids),
            "indexing",
            checked.n_documents,
            unit=" documents",
            disable=quiet,
        )
        with documents:
            changes = built.upsert(documents) if readable else Changes()
        changes.unchanged += len(kept)
        built.files.remember([file for file in changed if file.source not in log.again], before, log.unread)
        missing = _missing(built.files.documents(), input, ids, log)
        if delete_missing:
            n_deleted += built.delete(missing)
        if refit_map:
            built.refit_map()
        built.save_snapshot()
        _report(built, changes, n_deleted, time.perf_counter() - started)
        _report_files(built, changes.other_source, longer, [] if delete_missing else missing, input)
        log.print_table(found.files)


def _unchanged(
    folder: Path, found: FoundFiles, rows: int | None, *, by_deletion: bool
) -> tuple[int, Unchanged]:
    """Rows of a table that are one document, and the files that need no reading; none before a deletion."""
    if not (folder / FILE).exists():
        return rows or 1, Unchanged({}, {})
    with closing(Store(folder)) as store:
        rows = rows or store.settings.rows_per_document
        unchanged = Files(store).unchanged([] if by_deletion else found.files, _how(rows))
        return rows, unchanged


def _how(rows: int) -> str:
    """How files are read; another text makes all of them be read again."""
    return f"reading {READING} rows {rows}"


class _Checked(NamedTuple):
    """What the first reading of the input found.

    Attributes:
        n_documents: their number.
        row_ids: the ids of documents that are rows.
        hashes: content hashes of the other documents, by source.
        unread: why files could not be read, by source.
        again: sources of those of them that may be readable next time.
    """

    n_documents: int
    row_ids: set[str]
    hashes: dict[str, str]
    unread: dict[str, str]
    again: set[str]


def _check(
    input: Sequence[str],
    files: Sequence[SourceFile],
    rows: int,
    kept: Sequence[str],
    strict: bool,
    may_be_empty: bool = False,
) -> _Checked:
    """Read the input and report what is left out.

    Args:
        input: as the user gave it.
        files: those files of it that may have changed.
        rows: rows of a table that are one document.
        kept: ids of the documents of the others.
        strict: whether a file that cannot be read is an error.
        may_be_empty: whether input without text is none.

    Raises:
        InputError: for a given file that cannot be read, input without text, or, if `strict`, any file that cannot be
            read.
    """
    log, n_documents, any_text = ReadingLog(), 0, bool(kept)
    row_ids: set[str] = set()
    hashes: dict[str, str] = {}
    with_rows = {file.source for file in files if file.has_rows}
    # Files have no names yet, and a row's id may be equal to the name that a file gets: paths stand in for names.
    for document in read_files(files, {file.source: file.source for file in files}, log, rows):
        n_documents += 1
        any_text = any_text or bool(document.text.strip() or document.title.strip())
        if document.source in with_rows:
            row_ids.add(document.id)
        else:
            hashes[document.source] = document.hash
    log.report()
    if strict and log.unread:
        raise InputError(f"{next(iter(log.unread.values()))}. Leave out --strict to skip such files.")
    if input and not any_text and not may_be_empty:
        raise InputError(f"{', '.join(input)}: no text found; expected at least one document with text.")
    return _Checked(n_documents, row_ids, hashes, log.unread, log.again)


def _noting_ids(documents: Iterable[Document], ids: set[str]) -> Iterator[Document]:
    for document in documents:
        ids.add(document.id)
        yield document


def _delete(built: Index, paths: Sequence[str]) -> int:
    """Delete the documents of the files and folders `paths`; returns their number."""
    for path in paths:
        if not built.files.documents_below([path]):
            raise InputError(f"--delete {path}: the index has no document of such a file or folder.")
    return built.delete(built.files.documents_below(paths)) if paths else 0


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


@contextmanager
def _opened(
    folder: Path, embedder: str | None, given: dict[str, Any], fusion: FusionKind | None
) -> Iterator[Index]:
    """Open the index in `folder`, or create it; a new index is removed on an error if it has no documents yet."""
    if (folder / FILE).exists():
        with Index.open(folder, embedder) as index:
            settings = index.settings
            if embedder is None and settings.embedder not in ("", DEFAULT_EMBEDDER):
                print(
                    f"{folder} keeps its embedder {settings.embedder}; a new index would get {DEFAULT_EMBEDDER}",
                    file=sys.stderr,
                )
            own = {**{name: getattr(settings, name) for name in given}, "fusion": settings.fusion.kind}
            for name, value in {**given, **({"fusion": fusion} if fusion else {})}.items():
                if value != own[name]:
                    raise InputError(
                        f"{folder} was created with {name} {own[name]}, not {value}; leave out --{name}."
                    )
            yield index
        return
    encoder = Encoder.from_pretrained(embedder or DEFAULT_EMBEDDER)
    other = Fusion(fusion) if fusion and fusion != encoder.config.fusion.kind else None
    try:
        index = Index.create(folder, encoder, fusion=other, **given)
    except InputError:
        if not (folder / FILE).exists():
            raise
        raise InputError(
            f"Another process has created {folder} in the meantime; wait until it has ended, then run this again."
        ) from None
    with index:
        try:
            yield index
        except BaseException:
            if not index.document_ids():
                index.close()
                shutil.rmtree(folder)
            raise


def _report(index: Index, changes: Changes, n_deleted: int, seconds: float) -> None:
    stats = index.stats()
    print(
        f"{index.folder}: {changes.added} documents added, {changes.updated} updated, {changes.unchanged} unchanged, "
        f"{n_deleted} deleted; {changes.passages} passages written in {seconds:.1f} s; "
        f"the index now has {stats['documents']} documents in {stats['passages']} passages"
    )
    if stats["vectors"] and (stats["vectors"]["type"] != FLAT or "note" in stats["vectors"]):
        print(describe(stats["vectors"]))
    if changes.empty:
        print(f"{changes.empty} documents have neither text nor title, so they have no passages")
    if changes.shortened:
        most = index.settings.passages_per_document
        print(
            f"{changes.shortened} documents have more than {most} passages; only the first {most} of each are indexed"
        )
    if changes.truncated and index.encoder:
        limit = index.encoder.max_tokens
        print(
            f"{changes.truncated} passages, titles included, were truncated to the embedder's {limit} tokens"
        )
    fitted = stats["map_passages"]
    if stats["corpus_map"] != "none" and stats["passages"] > 2 * max(fitted, 1):
        print(f"the corpus map was fitted on {fitted} passages only; --refit_map fits it on all")


def _report_files(
    index: Index, replaced: Sequence[str], longer: Sequence[str], missing: Sequence[str], input: Sequence[str]
) -> None:
    """Print which documents are not those of the files that the user may take them for."""
    if replaced:
        print(
            f"{len(replaced)} documents replaced one of the same id from elsewhere, such as {replaced[0]}; "
            "give the rows other ids to keep both"
        )
    if longer:
        print(
            f"{len(longer)} files have longer ids, since another document has the path below the input as its id, "
            f"such as {longer[0]}"
        )
    if missing:
        print(
            f"{len(missing)} documents of the index are not in the input, such as {missing[0]}; "
            "--delete_missing deletes them"
        )
    below = [os.path.realpath(path) for path in input]
    elsewhere = [one for one in index.files.documents() if not any(one.is_below(path) for path in below)]
    places = {place for place in {one.place for one in elsewhere} if is_gone(place)}
    gone = [one for one in elsewhere if one.place in places]
    if gone:
        print(
            f"{len(gone)} documents are of files elsewhere that no longer exist, such as {gone[0].place}; "
            "--delete PATH deletes the documents of a file or folder"
        )
