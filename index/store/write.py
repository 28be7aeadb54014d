"""Write documents to the store: detect changes, split, encode, and commit in batches."""

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import ArrayLike

from embed.data.beir import join_title
from embed.data.vectors import Vectors, unit_length
from embed.encoding.embedder import Embedder
from embed.encoding.runner import Here, Runner
from embed.network.corpus_map import CorpusMap
from gpt_core.common.errors import InputError
from index.reading.document import Document
from index.reading.passages import MIN_MAX_TOKENS, Passage, split
from index.store.settings import Settings
from index.store.store import Store

# Passages encoded and committed together, a block: larger blocks are faster, but a killed process loses more work.
PASSAGES_PER_COMMIT = 64
PASSAGES_PER_ENCODE = 1024


@dataclass
class Changes:
    """Counts of an `add` or `upsert`.

    Attributes:
        added, updated, unchanged: documents.
        empty: documents added or updated without text and title, which have no passages.
        shortened: documents added or updated of which only the first `passages_per_document` passages were indexed.
        passages: passages written.
        truncated: passages written that the embedder truncated to its context, title included.
        other_source: ids of documents of files that replaced a document which was not from the same file.
    """

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    empty: int = 0
    shortened: int = 0
    passages: int = 0
    truncated: int = 0
    other_source: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Prepared:
    """A document split into passages, ready to be encoded; `shortened`: it has more than are indexed."""

    document: Document
    passages: list[Passage]
    vectors: Vectors | None  # (n_passages, dimension); None: still to be encoded
    shortened: bool


Block = dict[str, Prepared]  # documents that are encoded and committed together, by id


def write(
    store: Store,
    encoder: Embedder | None,
    documents: Iterable[Document],
    vectors: Vectors | None,
    *,
    replace: bool,
    runner: Runner | None = None,
) -> Changes:
    """Write `documents` to `store` in order, each in one transaction. After an error, committed documents remain.

    Args:
        store: the store, locked for writing by the caller.
        encoder: the embedder; not needed with `vectors`.
        documents: read lazily. A document that is stored with the same content is skipped.
        vectors: (n, dimension), one per document, which is then a single passage; None to split and encode.
        replace: whether to replace a document that is stored with other content.
        runner: where passages are encoded; None: in this process.

    Raises:
        InputError: for a document that is stored with other content, unless `replace`, or one that cannot be encoded.
    """
    runner = runner or Here()
    changes = Changes()
    blocks: list[Block] = [{}]  # the documents that are not written yet
    moved: dict[str, str] = {}  # sources of documents that came from another file before
    rows = iter(vectors) if vectors is not None else None
    for document in documents:
        row = next(rows)[None] if rows is not None else None
        # Of a duplicate id, the first document must be in the store before.
        if any(document.id in block for block in blocks):
            _commit(store, encoder, runner, blocks, changes)
            blocks = [{}]
        with store.read() as tx:
            known, source = store.document_state(tx, document.id) or (None, "")
        if known == document.hash:
            changes.unchanged += 1
            if document.source not in ("", source):
                moved[document.id] = document.source
            continue
        if known and not replace:
            message = f"Document {document.id!r} exists with other content; use upsert to replace it."
            raise InputError(message)
        if known and document.source not in ("", source):
            changes.other_source.append(document.id)
        blocks[-1][document.id] = prepare(store.settings, encoder, document, row)
        if sum(len(one.passages) for one in blocks[-1].values()) >= PASSAGES_PER_COMMIT:
            if len(blocks) == runner.at_once:
                _commit(store, encoder, runner, blocks, changes)
                blocks = []
            blocks.append({})
    _commit(store, encoder, runner, blocks, changes)
    if moved:
        with store.write() as tx:
            for doc_id, source in moved.items():
                store.set_source(tx, doc_id, source)
    return changes


def fit_map(store: Store, tx: sqlite3.Connection, settings: Settings) -> None:
    """Fit the corpus map of `settings` on all stored vectors and store it with their number."""
    corpus_map, n_passages = CorpusMap(), 0
    if settings.corpus_map != "none":
        vectors = store.vectors(tx, settings)
        corpus_map = CorpusMap.fit(settings.corpus_map, vectors, settings.map_components)
        n_passages = len(vectors)
    store.put_corpus_map(tx, corpus_map, n_passages)


def prepare(
    settings: Settings, encoder: Embedder | None, document: Document, vector: Vectors | None = None
) -> Prepared:
    """Split a document into the passages that are indexed; with a `vector` (1, dimension) it is one passage.

    Raises:
        InputError: without an encoder, or for a character that a character tokenizer lacks.
    """
    if vector is not None:
        whole = Passage(document.id, 0, len(document.text), document.text)
        return Prepared(document, [whole], vector, shortened=False)
    if encoder is None:
        raise InputError("This index was built from precomputed vectors; give vectors with the documents.")
    most = settings.passages_per_document
    try:
        # one passage more than is indexed, to see whether the document is shortened
        passages = list(islice(_split(settings, encoder, document), most and most + 1))
    except InputError as error:  # a character that a character tokenizer lacks
        raise InputError(f"document {document.id!r}: {error}") from None
    return Prepared(document, passages[:most], None, shortened=len(passages) > len(passages[:most]))


def _split(settings: Settings, encoder: Embedder, document: Document) -> Iterator[Passage]:
    """Passages that fit the embedder's context together with the title, which is encoded before each."""
    tokenizer = encoder.tokenizer
    head = encoder.config.document_prompt + document.title + "\n"
    n_free = encoder.max_tokens - len(tokenizer.encode(head, add_special_tokens=True))
    # With a title that leaves fewer tokens than this minimum, the embedder truncates the passage and counts it.
    max_tokens = min(settings.max_tokens, max(n_free, settings.max_tokens // 4, MIN_MAX_TOKENS))
    return split(document, tokenizer, max_tokens, min(settings.overlap, max_tokens // 2))


def _commit(
    store: Store, encoder: Embedder | None, runner: Runner, blocks: list[Block], changes: Changes
) -> None:
    """Encode the documents' passages, write each block in one transaction, and update `changes`."""
    texts = [
        [
            join_title(one.document.title, passage.text)
            for one in block.values()
            if one.vectors is None
            for passage in one.passages
        ]
        for block in blocks
    ]
    # Encode in parts, so that the tokens of a document of many megabytes are never all in memory.
    parts = [
        some[i : i + PASSAGES_PER_ENCODE] for some in texts for i in range(0, len(some), PASSAGES_PER_ENCODE)
    ]
    encoded = iter(runner.encode(encoder, parts)) if parts and encoder else iter(())
    for block, some in zip(blocks, texts, strict=True):
        if not block:
            continue
        done = list(islice(encoded, -(-len(some) // PASSAGES_PER_ENCODE)))
        changes.truncated += sum(one.n_truncated for one in done)
        vectors = np.concatenate(
            [np.empty((0, store.settings.dimension), dtype=np.float32), *(one.vectors for one in done)]
        )
        _write_block(store, block, vectors, changes)


def _write_block(store: Store, block: Block, encoded: Vectors, changes: Changes) -> None:
    """Write the documents of a block in one transaction; `encoded` are the vectors of those without their own."""
    with store.write() as tx:
        for one in block.values():
            vectors = one.vectors
            if vectors is None:
                vectors, encoded = encoded[: len(one.passages)], encoded[len(one.passages) :]
            replaced = store.put(tx, one.document, one.passages, vectors)
            changes.updated += replaced
            changes.added += not replaced
            changes.empty += not one.passages
            changes.shortened += one.shortened
            changes.passages += len(one.passages)


def check_vectors(vectors: ArrayLike, dimension: int) -> Vectors:
    """Normalise vectors (dimension,) or (n, dimension) to float32 unit vectors (n, dimension); zeros stay zeros.

    Raises:
        InputError: for a wrong shape, or values that are not finite numbers.
    """
    try:
        rows = np.atleast_2d(np.asarray(vectors, dtype=np.float32))
    except (TypeError, ValueError):
        raise InputError(
            f"vectors are not arrays of numbers; expected ({dimension},) or (n, {dimension})."
        ) from None
    if rows.ndim != 2 or rows.shape[1] != dimension:
        raise InputError(
            f"vectors have the shape {np.shape(vectors)}; expected ({dimension},) or (n, {dimension})."
        )
    if not np.isfinite(rows).all():
        raise InputError("vectors contain NaN or infinite values; expected finite numbers.")
    return unit_length(rows)
