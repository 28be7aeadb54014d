"""Change the embedder of an index: encode the stored passages again beside their old vectors, then swap at once.

Searches use the old vectors until the swap, which is one transaction. A killed process loses no more than a batch.
"""

from typing import NamedTuple

from tqdm import tqdm

from embed.data.beir import join_title
from embed.encoding.embedder import Embedder
from embed.encoding.fingerprint import same
from gpt_core.common.errors import InputError
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
            store.begin_new_vectors(tx, "")
        raise InputError(f"{store.folder} has the embedder {old.embedder_words} already.")
    with store.write() as tx:
        before = store.begin_new_vectors(tx, encoder.fingerprint)
    encoded, truncated = _encode(store, encoder, new, before), encoder.n_truncated
    with store.write() as tx:
        store.swap_vectors(tx, new)
        fit_map(store, tx, new)
    return Reembedded(before, encoded, truncated)


def _encode(store: Store, encoder: Embedder, settings: Settings, before: int) -> int:
    """Encode the passages that have no new vector; returns their number."""
    with store.read() as tx:
        total = store.count(tx, "passages")
    n_encoded, last = 0, 0
    with tqdm(total=total, initial=before, desc="encoding", unit=" passages", disable=None) as bar:
        while True:
            with store.read() as tx:
                numbers = store.without_new_vector(tx, last, PASSAGES_PER_COMMIT)
                rows = store.passages(tx, numbers)
            if not numbers:
                return n_encoded
            texts = [join_title(rows[number]["title"], rows[number]["text"]) for number in numbers]
            vectors = encoder.encode_document(texts).astype(settings.dtype)
            with store.write() as tx:
                store.put_new_vectors(tx, numbers, vectors)
            last, n_encoded = numbers[-1], n_encoded + len(numbers)
            bar.update(len(numbers))
