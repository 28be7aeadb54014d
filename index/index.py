"""The index as its users see it: create, open, add, upsert, delete, search."""

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast, get_args, overload

import numpy as np
from numpy.typing import ArrayLike

from embed.encoding.encoder import Encoder
from embed.network.config import Fusion
from gpt_core.common.errors import InputError
from index.dense.snapshot import Snapshot
from index.dense.view import View, catch_up
from index.reading.document import Document
from index.search.filters import Filter, allowed
from index.search.hits import Hit, Ranked
from index.search.matches import Matches
from index.search.rank import rank_dense, rank_hybrid, rank_lexical
from index.store.settings import Settings
from index.store.store import Store
from index.store.write import Changes, check_vectors, fit_map, write

Mode = Literal["hybrid", "dense", "lexical"]
MAP_SETTLED = 1000  # passages from which a corpus map is good for a corpus that grows


class Index:
    """Documents that can be searched; a folder. Any number of threads and processes search, one at a time writes.

    Make one with `create` or `open`; end it with `close` or a `with` block. A search sees what any process has
    committed before it.
    """

    def __init__(self, store: Store, encoder: Encoder | None) -> None:
        self._store, self._encoder = store, encoder
        self._encoder_lock = threading.Lock()
        self._view: View | None = None
        self._view_lock = threading.Lock()

    @classmethod
    def create(
        cls,
        folder: str | Path,
        encoder: Encoder | None = None,
        *,
        max_tokens: int = 256,
        overlap: int | None = None,
        passages_per_document: int | None = None,
        fusion: Fusion | None = None,
        dimension: int | None = None,
    ) -> "Index":
        """Make an empty index in a new folder.

        Args:
            folder: where; must not exist or be empty.
            encoder: the embedder; None for an index of ready vectors.
            max_tokens: the most tokens of a passage, title apart.
            overlap: the most tokens that neighbouring passages share; None for an eighth of `max_tokens`.
            passages_per_document: index only so many passages of each document; None for all.
            fusion: how hybrid search combines its legs; None for the embedder's own choice.
            dimension: of the vectors; only without an encoder.

        Raises:
            InputError: for a folder that holds anything, or lengths that cannot be.
        """
        overlap = max_tokens // 8 if overlap is None else overlap
        if encoder:
            settings = Settings.of(encoder, max_tokens, overlap, passages_per_document, fusion)
        else:
            settings = Settings("", "", dimension or 0, fusion=fusion or Fusion())
        return cls(Store.create(folder, settings), encoder)

    @classmethod
    def open(cls, folder: str | Path, encoder: Encoder | str | Path | None = None) -> "Index":
        """Open an index.

        Args:
            folder: where it is.
            encoder: its embedder, or that model's name or folder; None: the one that the index remembers is loaded when
                a text first needs it.

        Raises:
            InputError: if there is no index, or it was built with another embedder.
        """
        snapshot = Snapshot.state_on_disk(Path(folder))
        store = Store(folder)
        if isinstance(encoder, str | Path):
            encoder = Encoder.from_pretrained(encoder)
        if encoder:
            try:
                _check_encoder(store, encoder)
            except InputError:
                store.close()
                raise
        with store.read() as tx:
            # A store that came back from a backup does not share the snapshot's past. That shows only as long as it
            # has not grown beyond the snapshot's number.
            other = snapshot and snapshot.identity != store.settings.identity
            if snapshot and (other or snapshot.sequence > store.sequence(tx)):
                Snapshot.discard(store.folder)
        return cls(store, encoder)

    @property
    def folder(self) -> Path:
        """Where the index is."""
        return self._store.folder

    @property
    def settings(self) -> Settings:
        """What was fixed when the index was made."""
        return self._store.settings

    @property
    def encoder(self) -> Encoder | None:
        """The embedder; None for an index of ready vectors.

        Raises:
            InputError: if the one that the index remembers is not there, or is another by now.
        """
        with self._encoder_lock:
            if self._encoder is None and self.settings.embedder:
                encoder = Encoder.from_pretrained(self.settings.embedder)
                _check_encoder(self._store, encoder)
                self._encoder = encoder
            return self._encoder

    def close(self) -> None:
        """Close the store's files."""
        self._store.close()

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Writing

    def add(self, documents: Document | Iterable[Document], vectors: ArrayLike | None = None) -> Changes:
        """Add documents, read as they are needed and committed a batch at a time; each is there whole or not at all.

        A document that is there with the same content is left alone, so an `add` that was interrupted goes on where it
        was if it is called again.

        Args:
            documents: one or many.
            vectors: a vector (dimension,) for one document, or (n, dimension) for n. Each document then is a single
                passage, whatever its length, and its vector is brought to unit length. None: documents are split, and
                their passages encoded.

        Raises:
            InputError: for a document that is there with other content, vectors of another shape, or another writer.
                What was committed before stays.
        """
        return self._write(documents, vectors, replace=False)

    def upsert(self, documents: Document | Iterable[Document], vectors: ArrayLike | None = None) -> Changes:
        """`add`, but a document that is there with other content is replaced."""
        return self._write(documents, vectors, replace=True)

    def _write(
        self, documents: Document | Iterable[Document], vectors: ArrayLike | None, *, replace: bool
    ) -> Changes:
        if isinstance(documents, Document):
            documents = [documents]
        rows = None
        if vectors is not None:
            documents = list(documents)
            rows = check_vectors(vectors, self.settings.dimension)
            if len(rows) != len(documents):
                raise InputError(
                    f"{len(documents)} documents and {len(rows)} vectors; expected one for each."
                )
        with self._store.lock():
            encoder = self.encoder if rows is None else None
            changes = write(self._store, encoder, documents, rows, replace=replace)
            with self._store.read() as tx:
                fitted, there = self._store.map_passages(tx), self._store.count(tx, "passages")
            # A map of a few passages is none: until it has seen enough, every doubling fits it again.
            unsettled = fitted < MAP_SETTLED and there >= 2 * max(fitted, 1)
            if self.settings.corpus_map != "none" and unsettled:
                fit_map(self._store)
        return changes

    def delete(self, ids: str | Iterable[str]) -> int:
        """Delete documents in one transaction; ids that are not there are passed over.

        Returns:
            How many documents were deleted.
        """
        ids = [ids] if isinstance(ids, str) else list(ids)
        with self._store.lock(), self._store.write() as tx:
            return sum(self._store.remove(tx, doc_id) for doc_id in ids)

    def refit_map(self) -> None:
        """Fit the corpus map again, on the vectors that are stored now.

        The first `add` fits it at its end, and later ones do, too, each time that the corpus has doubled, until it has
        seen 1,000 passages. After a large corpus has changed much, another fit serves it better.

        Raises:
            InputError: if the index's embedder has no use for a map.
        """
        if self.settings.corpus_map == "none":
            raise InputError(f"{self.folder}: its embedder needs no corpus map, so there is none to fit.")
        with self._store.lock():
            fit_map(self._store)

    def save_snapshot(self) -> None:
        """Write a snapshot of the vectors as they are now, from which the next process starts at once."""
        with self._current() as (_, view):
            view.merged().base.save(self.folder)

    # Reading

    @overload
    def search(
        self, query: str, k: int = 10, mode: Mode = "hybrid", filter: Filter | None = None
    ) -> list[Hit]: ...
    @overload
    def search(
        self,
        query: Sequence[str] | ArrayLike,
        k: int = 10,
        mode: Mode = "hybrid",
        filter: Filter | None = None,
    ) -> list[Any]: ...
    def search(
        self,
        query: str | Sequence[str] | ArrayLike,
        k: int = 10,
        mode: Mode = "hybrid",
        filter: Filter | None = None,
    ) -> list[Any]:
        """Find the passages that suit a query best.

        Args:
            query: a text, or texts, or a vector (dimension,), or vectors (n, dimension) as the embedder gives them.
                A vector has no words: "hybrid" then is "dense". A text that the embedder cuts to its context is counted
                in the encoder's `n_truncated`.
            k: how many hits. Fewer come back only if fewer passages pass the filter or, for "lexical", match.
            mode: "dense" orders by cosine, "lexical" by BM25, both exactly; "hybrid" by both as `settings.fusion` says,
                with exact scores, what is among the best max(100, 10 k) of either.
            filter: conditions on the documents' metadata, all of which must hold: a field has a value
                (`{"status": "Final"}`), or one of several (`["Final", "Active"]`), or lies within bounds
                (`{"gte": 2000, "lte": 2010}`). A field that holds a list has each of its values. `doc_id` is the
                document's id.

        Returns:
            Hits, best first; for several queries a list of such lists.

        Raises:
            InputError: for an empty query, k < 1, a mode or a filter of another form, vectors of another shape, or a
                text in an index of ready vectors.
        """
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise InputError(f"k is {k!r}; expected a whole number of at least 1.")
        if mode not in get_args(Mode):
            raise InputError(f"mode is {mode!r}; expected {', '.join(get_args(Mode))}.")
        if isinstance(query, str):
            return self._search_texts([query], k, mode, filter)[0]
        if isinstance(query, Sequence) and all(isinstance(one, str) for one in query):
            return self._search_texts(cast(list[str], list(query)), k, mode, filter)
        queries = check_vectors(cast(ArrayLike, query), self.settings.dimension)
        if mode == "lexical":
            raise InputError(
                "A lexical search takes words; give a text, or look for the vector in mode dense."
            )
        with self._current() as (tx, view):
            numbers = None if filter is None else allowed(tx, filter)
            hits = self._hits(tx, rank_dense(view, view.corpus_map.apply(queries), k, numbers))
        return hits[0] if np.ndim(cast(ArrayLike, query)) == 1 else hits

    def _search_texts(self, texts: list[str], k: int, mode: Mode, filter: Filter | None) -> list[list[Hit]]:
        for text in texts:
            if not text.strip():
                raise InputError("The query is empty; expected some text.")
            if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
                raise InputError(f"The query {text!r} holds half of a surrogate pair; expected Unicode text.")
        if mode == "lexical":
            with self._store.read() as tx:
                numbers = None if filter is None else allowed(tx, filter)
                return self._hits(
                    tx, [rank_lexical(Matches.find(self._store, tx, text, numbers), k) for text in texts]
                )
        encoder = self.encoder
        if encoder is None:
            raise InputError(
                f"{self.folder} was built of ready vectors; texts can be searched in mode lexical."
            )
        queries = encoder.encode_query(texts)
        with self._current() as (tx, view):
            numbers = None if filter is None else allowed(tx, filter)
            queries = view.corpus_map.apply(queries)
            if mode == "dense":
                return self._hits(tx, rank_dense(view, queries, k, numbers))
            matches = [Matches.find(self._store, tx, text, numbers) for text in texts]
            return self._hits(tx, rank_hybrid(view, queries, matches, k, numbers, self.settings.fusion))

    @contextmanager
    def _current(self) -> Iterator[tuple[sqlite3.Connection, View]]:
        """A transaction and the vectors of the very state that it sees."""
        with self._store.read() as tx:
            # The transaction's first look at the store is within the lock: it sees no older state than the last view.
            with self._view_lock:
                view = self._view = catch_up(self._view, self._store, tx)
            yield tx, view

    def _hits(self, tx: sqlite3.Connection, results: list[list[Ranked]]) -> list[list[Hit]]:
        rows = self._store.passages(tx, sorted({ranked.number for result in results for ranked in result}))
        return [[Hit.of(ranked, rows[ranked.number]) for ranked in result] for result in results]

    def get(self, doc_id: str) -> Document | None:
        """A document, or None if there is none of that id."""
        with self._store.read() as tx:
            return self._store.document(tx, doc_id)

    def document_ids(self) -> list[str]:
        """All documents' ids, in the order in which they came."""
        with self._store.read() as tx:
            return self._store.document_ids(tx)

    def stats(self) -> dict[str, Any]:
        """Counts and settings, ready for JSON."""
        with self._store.read() as tx:
            return {
                "documents": self._store.count(tx, "documents"),
                "passages": self._store.count(tx, "passages"),
                "sequence": self._store.sequence(tx),
                "map_passages": self._store.map_passages(tx),
                **json.loads(self.settings.to_json()),
            }


def _check_encoder(store: Store, encoder: Encoder) -> None:
    if encoder.fingerprint != store.settings.fingerprint:
        raise InputError(
            f"{store.folder} was built with {store.settings.embedder_words}, not with {encoder.name} "
            f"({encoder.fingerprint[:12]}); open it with its own embedder, or build another index."
        )
