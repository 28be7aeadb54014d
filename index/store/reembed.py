"""Change the embedder of an index: encode the stored passages again beside their old vectors, then swap at once.

Searches use the old vectors until the swap, which is one transaction. A killed process loses no more than a batch.
"""

import sqlite3
from collections.abc import Iterator
from typing import NamedTuple

from embed.data.beir import join_title
from embed.encoding.embedder import Embedder
from embed.encoding.fingerprint import same
from gpt_core.common.errors import InputError
from gpt_core.common.progress import progress
from index.store.connections import get_meta, set_meta
from index.store.schema import vectors_table
from index.store.settings import Settings
from index.store.store import Store
from index.store.write import fit_map

PASSAGES_PER_COMMIT = 256  # encoded together


class Reembedded(NamedTuple):
    """What `reembed` did: passages that an interrupted run had encoded, that it encoded, that it truncated."""

    before: int
    encoded: int
    truncated: int


def reembed(store: Store, encoder: Embedder) -> Reembedded:
    """Encode all passages with `encoder` and make it the embedder of the index; continues an interrupted run.

    Afterwards the store has another identity, and the objects that have it open must open it again. Passages are not
    divided anew. Fusion and corpus map are those of the new embedder.

    Args:
        store: the store, locked for writing by the caller.
        encoder: the new embedder. If it is the index's already, the vectors of an interrupted run are deleted.

    Raises:
        InputError: if the passages are longer than the embedder's context, or it is the index's already.
    """
    old, new = store.settings, store.settings.with_encoder(encoder, store.folder)
    if same(encoder.fingerprint, old.fingerprint):
        with store.write() as tx:
            _begin(tx, "")
        raise InputError(f"{store.folder} has the embedder {old.embedder_words} already.")
    with store.write() as tx:
        before, total = _begin(tx, encoder.fingerprint), store.count(tx, "passages")
    encoding = progress(_encode(store, encoder, new), "encoding", total - before, "passages")
    encoded = sum(1 for _ in encoding)
    with store.write() as tx:
        tx.execute("DROP TABLE vectors")
        tx.execute("ALTER TABLE new_vectors RENAME TO vectors")  # every passage has one
        tx.execute(vectors_table("new_vectors"))
        set_meta(tx, "new_fingerprint", "")
        set_meta(tx, "settings", new.to_json())
        fit_map(store, tx, new)
    return Reembedded(before, encoded, encoder.n_truncated)


def _begin(tx: sqlite3.Connection, fingerprint: str) -> int:
    """Prepare for the vectors of an embedder; those of another one are deleted.

    Returns:
        The number of passages that have a new vector already.
    """
    if not same(get_meta(tx, "new_fingerprint", ""), fingerprint):
        tx.execute("DELETE FROM new_vectors")
        set_meta(tx, "new_fingerprint", fingerprint)
    return tx.execute("SELECT count(*) FROM new_vectors").fetchone()[0]


def _encode(store: Store, encoder: Embedder, settings: Settings) -> Iterator[int]:
    """Encode the passages that have no new vector, and yield their ids once it is stored."""
    query = """SELECT number FROM passages WHERE number > ?
        AND NOT EXISTS (SELECT 1 FROM new_vectors WHERE new_vectors.number = passages.number)
        ORDER BY number LIMIT ?"""
    numbers = [0]
    while True:
        with store.read() as tx:
            numbers = [number for (number,) in tx.execute(query, (numbers[-1], PASSAGES_PER_COMMIT))]
            rows = store.passages(tx, numbers)
        if not numbers:
            return
        texts = [join_title(rows[number]["title"], rows[number]["text"]) for number in numbers]
        vectors = encoder.encode_document(texts).astype(settings.dtype)
        with store.write() as tx:
            pairs = zip(numbers, map(bytes, vectors), strict=True)
            tx.executemany("INSERT INTO new_vectors VALUES (?, ?)", pairs)
        yield from numbers
