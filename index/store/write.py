"""Documents into the store: what changed, split, encoded, committed batch by batch."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import ArrayLike

from embed.data.vectors import Vectors, unit_length
from embed.encoding.encoder import Encoder
from embed.network.corpus_map import CorpusMap
from gpt_core.common.errors import InputError
from index.reading.document import Document
from index.reading.passages import LEAST_TOKENS, Passage, full_text, split
from index.store.store import Store

# So many passages are encoded and committed together: what a kill can cost, against what a batch saves.
PASSAGES_PER_COMMIT = 64
ENCODED_AT_ONCE = 1024


@dataclass
class Changes:
    """What an `add` or `upsert` did, and what it left out.

    Attributes:
        added, updated, unchanged: documents.
        empty: of those added or updated, documents without text and title, which have no passage.
        shortened: of those, documents of which only the first `passages_per_document` passages were taken.
        passages: passages written.
        truncated: of these, passages that the embedder cut to its context, title included.
    """

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    empty: int = 0
    shortened: int = 0
    passages: int = 0
    truncated: int = 0


@dataclass(frozen=True)
class _Prepared:
    """A document that is ready to be encoded."""

    document: Document
    passages: list[Passage]
    vectors: Vectors | None  # (n_passages, dimension), if they were given
    shortened: bool


def write(
    store: Store,
    encoder: Encoder | None,
    documents: Iterable[Document],
    vectors: Vectors | None,
    *,
    replace: bool,
) -> Changes:
    """Write `documents` into `store`, each whole and in order; what was committed when an error ends it stays.

    Args:
        store: the store, locked for writing by the caller.
        encoder: the embedder; not needed with `vectors`.
        documents: read as they are needed. One that is there with the same content is left alone.
        vectors: (n, dimension), one for each document, which then is a single passage; None to split and encode.
        replace: whether a document that is there with other content is replaced.

    Raises:
        InputError: for a document that is there with other content, unless `replace`, or one that cannot be encoded.
    """
    changes = Changes()
    pending: dict[str, _Prepared] = {}
    rows = iter(vectors) if vectors is not None else None
    for document in documents:
        row = next(rows)[None] if rows is not None else None
        if document.id in pending:  # twice in one stream: the second meets the first in the store
            _commit(store, encoder, pending, changes)
        with store.read() as tx:
            known = store.document_hash(tx, document.id)
        if known == document.hash:
            changes.unchanged += 1
            continue
        if known and not replace:
            message = f"A document {document.id!r} is there with other content; use upsert to replace it."
            raise InputError(message)
        pending[document.id] = _prepare(store, encoder, document, row)
        if sum(len(one.passages) for one in pending.values()) >= PASSAGES_PER_COMMIT:
            _commit(store, encoder, pending, changes)
    _commit(store, encoder, pending, changes)
    return changes


def fit_map(store: Store) -> None:
    """Fit the corpus map on all stored vectors and keep it, with the number of passages it was fitted on."""
    with store.read() as tx:
        _, vectors = store.vectors_after(tx, 0)
    settings = store.settings
    corpus_map = CorpusMap.fit(settings.corpus_map, vectors, settings.map_components)
    with store.write() as tx:
        store.put_corpus_map(tx, corpus_map, len(vectors))


def _prepare(store: Store, encoder: Encoder | None, document: Document, vector: Vectors | None) -> _Prepared:
    if vector is not None:
        whole = Passage(document.id, 0, len(document.text), document.text)
        return _Prepared(document, [whole], vector, shortened=False)
    if encoder is None:
        raise InputError("This index was built of ready vectors: give vectors with the documents.")
    most = store.settings.passages_per_document
    try:
        # one more than is kept tells whether there are more
        passages = list(islice(_split(store, encoder, document), most and most + 1))
    except InputError as error:  # a character that a character tokenizer lacks
        raise InputError(f"document {document.id!r}: {error}") from None
    return _Prepared(document, passages[:most], None, shortened=len(passages) > len(passages[:most]))


def _split(store: Store, encoder: Encoder, document: Document) -> Iterator[Passage]:
    """Passages that fit the embedder's context together with the title that is encoded before each."""
    settings, tokenizer = store.settings, encoder.tokenizer
    head = encoder.config.document_prompt + document.title + "\n"
    room = encoder.max_tokens - len(tokenizer.encode(head, add_special_tokens=True))
    # A title that leaves next to no room is cut, and counted, by the embedder.
    max_tokens = min(settings.max_tokens, max(room, settings.max_tokens // 4, LEAST_TOKENS))
    return split(document, tokenizer, max_tokens, min(settings.overlap, max_tokens // 2))


def _commit(store: Store, encoder: Encoder | None, pending: dict[str, _Prepared], changes: Changes) -> None:
    """Encode the pending documents' passages in one go, write all in one transaction, and count it."""
    if not pending:
        return
    texts = [
        full_text(one.document.title, passage.text)
        for one in pending.values()
        if one.vectors is None
        for passage in one.passages
    ]
    encoded = np.empty((0, store.settings.dimension), dtype=np.float32)
    if texts and encoder:
        before = encoder.n_truncated
        # A document of many megabytes has passages without end: their tokens are never all in memory.
        blocks = [texts[i : i + ENCODED_AT_ONCE] for i in range(0, len(texts), ENCODED_AT_ONCE)]
        encoded = np.concatenate([encoder.encode_document(block) for block in blocks])
        changes.truncated += encoder.n_truncated - before
    with store.write() as tx:
        for one in pending.values():
            vectors = one.vectors
            if vectors is None:
                vectors, encoded = encoded[: len(one.passages)], encoded[len(one.passages) :]
            replaced = store.put(tx, one.document, one.passages, vectors)
            changes.updated += replaced
            changes.added += not replaced
            changes.empty += not one.passages
            changes.shortened += one.shortened
            changes.passages += len(one.passages)
    pending.clear()


def check_vectors(vectors: ArrayLike, dimension: int) -> Vectors:
    """Ready vectors, one (dimension,) or several (n, dimension), as (n, dimension) of unit length; zeros stay zeros.

    Raises:
        InputError: for another shape, or values that are not finite numbers.
    """
    try:
        rows = np.atleast_2d(np.asarray(vectors, dtype=np.float32))
    except (TypeError, ValueError):
        raise InputError(f"expected vectors of {dimension} numbers.") from None
    if rows.ndim != 2 or rows.shape[1] != dimension:
        raise InputError(
            f"vectors have the shape {np.shape(vectors)}; expected ({dimension},) or (n, {dimension})."
        )
    if not np.isfinite(rows).all():
        raise InputError("vectors hold values that are not finite; expected finite numbers.")
    return unit_length(rows)
