"""The door that builds an index."""

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from embed.encoding.encoder import Encoder
from embed.network.config import Fusion, FusionKind
from gpt_core.common.errors import InputError
from gpt_core.hub.locate import DEFAULT_MODEL
from index.index import Index
from index.reading.read import iter_documents, list_files
from index.store.store import FILE
from index.store.write import Changes


def build_index(
    *,
    input: list[str],
    index: str,
    embedder: str | None = None,
    max_tokens: int | None = None,
    overlap: int | None = None,
    passages_per_document: int | None = None,
    fusion: FusionKind | None = None,
    refit_map: bool = False,
    delete_missing: bool = False,
) -> None:
    """Make an index of documents, or bring one up to date.

    New documents are added, changed ones replaced, unchanged ones left alone; a build that was stopped goes on if it is
    run again. The input is read through once before anything is written, so that a broken line is found at the start.

    Args:
        input: files and folders: .jsonl (also .gz, .xz; "text", optionally "_id", "title", other keys as metadata),
            .txt, .md; folders are walked to the bottom.
        index: folder of the index.
        embedder: model folder or known name; if not given, the index's own, or smollm2-135m-instruct for a new index.
        max_tokens: the most tokens of a passage, title apart; fixed when the index is made, 256 if not given.
        overlap: the most tokens that neighbouring passages share; fixed when the index is made, an eighth of
            max_tokens if not given.
        passages_per_document: index only the first so many passages of each document; fixed when the index is made.
        fusion: how hybrid search combines its legs, fixed when the index is made; the embedder's own if not given.
        refit_map: fit the embedder's corpus map again at the end; a new index's is fitted in any case.
        delete_missing: delete documents that are in the index but not in the input.
    """
    started = time.perf_counter()
    if not input:
        raise InputError("--input names nothing; expected files or folders.")
    skipped = list_files(input)[1]
    if skipped:
        print(f"passed over {len(skipped)} files of other kinds, such as {skipped[0]}", file=sys.stderr)
    ids, any_text = [], False
    for document in iter_documents(input):
        ids.append(document.id)
        any_text = any_text or bool(document.text.strip() or document.title.strip())
    if not any_text:
        raise InputError(f"{', '.join(input)}: there is no text in it; expected at least one document.")

    fixed = {"max_tokens": max_tokens, "overlap": overlap, "passages_per_document": passages_per_document}
    given = {name: value for name, value in fixed.items() if value is not None}
    with _opened(Path(index), embedder, given, fusion) as built:
        quiet = not sys.stderr.isatty()
        with tqdm(iter_documents(input), "indexing", len(ids), unit=" documents", disable=quiet) as documents:
            changes = built.upsert(documents)
        n_deleted = built.delete(set(built.document_ids()) - set(ids)) if delete_missing else 0
        if refit_map:
            built.refit_map()
        built.save_snapshot()
        _report(built, changes, n_deleted, time.perf_counter() - started)


@contextmanager
def _opened(
    folder: Path, embedder: str | None, given: dict[str, int], fusion: FusionKind | None
) -> Iterator[Index]:
    """The index in `folder`, made if there is none; a new one is removed again if nothing was committed to it."""
    if (folder / FILE).exists():
        with Index.open(folder, embedder) as index:
            settings = index.settings
            own = {**{name: getattr(settings, name) for name in given}, "fusion": settings.fusion.kind}
            for name, value in {**given, **({"fusion": fusion} if fusion else {})}.items():
                if value != own[name]:
                    raise InputError(
                        f"{folder} was made with {name} {own[name]}, not {value}; leave that to the index."
                    )
            yield index
        return
    encoder = Encoder.from_pretrained(embedder or DEFAULT_MODEL)
    other = Fusion(fusion) if fusion and fusion != encoder.config.fusion.kind else None
    with Index.create(folder, encoder, fusion=other, **given) as index:
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
        f"it now holds {stats['documents']} documents in {stats['passages']} passages"
    )
    if changes.empty:
        print(f"{changes.empty} documents have no text and no title, and so no passage")
    if changes.shortened:
        most = index.settings.passages_per_document
        print(
            f"{changes.shortened} documents have more than {most} passages; only the first {most} of each are there"
        )
    if changes.truncated and index.encoder:
        limit = index.encoder.max_tokens
        print(f"{changes.truncated} passages with their titles were cut to the embedder's {limit} tokens")
    fitted = stats["map_passages"]
    if stats["corpus_map"] != "none" and stats["passages"] > 2 * max(fitted, 1):
        print(f"the corpus map was fitted on {fitted} passages; --refit_map fits it on all")
