"""What a build prints about its results."""

from collections.abc import Iterable
from dataclasses import dataclass

from index.building.options import BuildOptions
from index.dense.ann import FLAT
from index.dense.manifest import describe
from index.index import Index
from index.reading.log import ReadingLog
from index.reading.source_files import is_stream
from index.store.files import FileDocument, is_gone
from index.store.write import Changes


@dataclass(frozen=True)
class Outcome:
    """What a build did.

    Attributes:
        changes: counts of documents and passages.
        n_deleted: documents deleted.
        missing: ids of documents that are below the input no longer, and were kept.
        longer: names of files that are longer because another document had the shorter one.
        log: what was read and what was not.
    """

    changes: Changes
    n_deleted: int
    missing: list[str]
    longer: list[str]
    log: ReadingLog


def print_counts(index: Index, outcome: Outcome, seconds: float) -> None:
    """Print how many documents and passages were written, and what is special about some of them."""
    stats, changes = index.stats(), outcome.changes
    print(
        f"{index.folder}: {changes.added} documents added, {changes.updated} updated, {changes.unchanged} unchanged, "
        f"{outcome.n_deleted} deleted; {changes.passages} passages written in {seconds:.1f} s; "
        f"the index now has {stats['documents']} documents in {stats['passages']} passages"
    )
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
    if stats["vectors"] and (stats["vectors"]["type"] != FLAT or "note" in stats["vectors"]):
        print(describe(stats["vectors"]))


def print_files(outcome: Outcome) -> None:
    """Print which documents are not those of the files that the user may take them for."""
    replaced, longer, missing = outcome.changes.other_source, outcome.longer, outcome.missing
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


def print_gone(documents: Iterable[FileDocument], options: BuildOptions) -> None:
    """Print how many of `documents`, those of the index, are of files outside the input that no longer exist."""
    elsewhere = [one for one in documents if not (is_stream(one.source) or one.is_in(options.below))]
    places = {place for place in {one.place for one in elsewhere} if is_gone(place)}
    gone = [one for one in elsewhere if one.place in places]
    if gone:
        print(
            f"{len(gone)} documents are of files elsewhere that no longer exist, such as {gone[0].place}; "
            "--delete PATH deletes the documents of a file or folder"
        )
