"""A dry run: what a build would do."""

from contextlib import ExitStack, closing

from tqdm import tqdm

from embed.encoding.embedder import Embedder
from gpt_core.common.terminal import printable
from index.building.options import BuildOptions
from index.building.reports import Outcome, print_files, print_gone
from index.building.second_pass import SecondPass, to_delete
from index.building.survey import Survey
from index.building.target import Target
from index.index import Index
from index.reading.document import Document
from index.store.files import Files, choose_names
from index.store.settings import Settings
from index.store.store import Store
from index.store.write import Changes, prepare


def dry_run(options: BuildOptions) -> None:
    """Print what `build` would do, a line for each document that would change, and write nothing.

    Documents are read and split into passages as in a build, but not encoded.

    Raises:
        InputError: as `build`.
    """
    target = Target.of(options)
    survey = Survey.of(options, target)
    encoder = _encoder(target)
    with ExitStack() as stack:
        store = None if target.is_new else stack.enter_context(closing(Store(target.folder)))
        tx = stack.enter_context(store.read()) if store else None
        stored = Files(store).documents() if store else []
        first = to_delete(Files(store), options.delete) if store else []
        deleted, sources = {one.id for one in first}, {one.source for one in first}
        _print("delete", *deleted)
        checked, second = survey.checked, SecondPass(survey)
        names, longer = choose_names(tx, survey.found, checked.row_ids, checked.hashes, sources)
        changes = Changes(unchanged=len(survey.kept))
        for document in second.documents(names, target.settings.rows_per_document):
            state = store.document_state(tx, document.id) if store and tx else None
            known = state if document.id not in deleted else None
            _note(changes, known, document, target.settings, encoder)
    missing = second.missing((one for one in stored if one.id not in deleted), options.below)
    if options.delete_missing:
        _print("delete", *missing)
        deleted |= set(missing)
    print(
        f"{target.folder}: {changes.added} documents would be added, {changes.updated} updated, {changes.unchanged} "
        f"unchanged, {len(deleted)} deleted; {changes.passages} passages would be written; a dry run writes nothing"
    )
    kept = [] if options.delete_missing else missing
    print_files(Outcome(changes, len(deleted), kept, longer, second.log))
    print_gone(stored, options)
    second.log.print_table(survey.found.files)


def _encoder(target: Target) -> Embedder | None:
    if target.encoder is not None:
        return target.encoder
    with Index.open(target.folder, target.options.embedder) as index:
        return index.encoder


def _note(
    changes: Changes,
    known: tuple[str, str] | None,
    document: Document,
    settings: Settings,
    encoder: Embedder | None,
) -> None:
    """Print what becomes of a document, and count it in `changes`.

    `known` are the hash and the source of the document that the index has under this id.
    """
    if known and known[0] == document.hash:
        changes.unchanged += 1
        return
    if known and document.source not in ("", known[1]):
        changes.other_source.append(document.id)
    passages = prepare(settings, encoder, document).passages
    changes.passages += len(passages)
    changes.updated += known is not None
    changes.added += known is None
    _print("update" if known else "add", f"{document.id} ({len(passages)} passages)")


def _print(verb: str, *whats: str) -> None:
    for what in whats:
        tqdm.write(printable(f"{verb:<7} {what}"))  # above the progress bar
