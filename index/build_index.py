"""The command that builds or updates an index."""

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
    """Build an index of documents, or update an existing one.

    New documents are added, changed ones replaced, unchanged ones skipped. To continue an interrupted build, run it
    again. The input is read once before anything is written, so that a malformed line is reported at the start.

    Args:
        input: files and folders: .jsonl (also .gz, .xz; "text", optionally "_id", "title"; other keys are metadata),
            .txt, .md; folders are searched recursively.
        index: folder of the index.
        embedder: model folder or known name; default: the existing index's embedder, or smollm2-135m-instruct.
        max_tokens: maximum tokens per passage, without the title; fixed when the index is created, 256 by default.
        overlap: maximum tokens that neighbouring passages share; fixed when the index is created, max_tokens / 8 by
            default.
        passages_per_document: index only the first n passages of each document; fixed when the index is created.
        fusion: how hybrid search combines the dense and lexical scores; fixed when the index is created; default: the
            embedder's.
        refit_map: fit the corpus map (whitening) again at the end; in a new index it is always fitted.
        delete_missing: delete documents that are in the index but not in the input.
    """
    started = time.perf_counter()
    if not input:
        raise InputError("--input is empty; give at least one file or folder.")
    skipped = list_files(input)[1]
    if skipped:
        print(f"skipped {len(skipped)} files of unsupported types, such as {skipped[0]}", file=sys.stderr)
    ids, any_text = [], False
    for document in iter_documents(input):
        ids.append(document.id)
        any_text = any_text or bool(document.text.strip() or document.title.strip())
    if not any_text:
        raise InputError(f"{', '.join(input)}: no text found; expected at least one document with text.")

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
    """Open the index in `folder`, or create it; a new index is removed on an error if it has no documents yet."""
    if (folder / FILE).exists():
        with Index.open(folder, embedder) as index:
            settings = index.settings
            own = {**{name: getattr(settings, name) for name in given}, "fusion": settings.fusion.kind}
            for name, value in {**given, **({"fusion": fusion} if fusion else {})}.items():
                if value != own[name]:
                    raise InputError(
                        f"{folder} was created with {name} {own[name]}, not {value}; leave out --{name}."
                    )
            yield index
        return
    encoder = Encoder.from_pretrained(embedder or DEFAULT_MODEL)
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
