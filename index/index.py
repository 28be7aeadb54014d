"""The public class `Index`: create, open, add, upsert, delete, search."""

import contextlib
import json
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast, overload

import numpy as np
from numpy.typing import ArrayLike

from embed.encoding.encoder import Encoder
from embed.network.config import Fusion
from gpt_core.common.errors import InputError
from index.dense.ann import AUTO, DEFAULT, Wanted, check_wanted
from index.dense.live import LiveView
from index.dense.manifest import Manifest
from index.reading.document import Document
from index.search.filters import Filter, unknown_fields
from index.search.rank import Hits
from index.search.search import Mode, Options, search_texts, search_vectors
from index.store.check import Problem, find_problems, mend
from index.store.files import Files
from index.store.settings import Settings
from index.store.store import Store
from index.store.write import Changes, check_vectors, fit_map, write

MIN_MAP_PASSAGES = 1000  # a corpus map fitted on fewer passages is fitted again when the corpus has doubled


class Index:
    """Searchable documents in a folder. Any number of threads and processes can search; one at a time can write.

    Get an index from `create` or `open`; end it with `close` or a `with` block. A search sees everything that any
    process committed before the search began. If the folder is deleted and a new index is made there, the next call
    works on the new index, or raises InputError if that was built with another embedder.
    """

    def __init__(self, view: LiveView, encoder: Encoder | None) -> None:
        self._view, self._encoder = view, encoder
        self._encoder_lock, self._view_lock = threading.Lock(), threading.Lock()
        self._closed = False

    @classmethod
    def create(
        cls,
        folder: str | Path,
        encoder: Encoder | None = None,
        *,
        max_tokens: int | None = None,
        overlap: int | None = None,
        passages_per_document: int | None = None,
        rows_per_document: int | None = None,
        fusion: Fusion | None = None,
        dimension: int | None = None,
        faiss: str = AUTO,
        recall: float = DEFAULT.recall,
    ) -> "Index":
        """Create an empty index in a new folder.

        Args:
            folder: the index's folder; must be empty or not exist.
            encoder: the embedder; None for an index of precomputed vectors.
            max_tokens: maximum tokens per passage, without the title; None for 256.
            overlap: maximum tokens that neighbouring passages share; None for `max_tokens` / 8.
            passages_per_document: index only the first n passages of each document; None for all.
            rows_per_document: rows of a table that `build_index` makes one document of; None for 1.
            fusion: how hybrid search combines the dense and lexical scores; None for the embedder's setting.
            dimension: length of precomputed vectors, which need it; with an encoder it is the encoder's.
            faiss, recall: as `set_faiss` takes them.

        Raises:
            InputError: if the folder is not empty, for invalid lengths, or for an argument that has no meaning for this
                kind of index.
        """
        settings = Settings.of(
            encoder,
            max_tokens,
            overlap,
            passages_per_document,
            rows_per_document,
            fusion,
            dimension,
            Path(folder),
        )
        check_wanted(Wanted(faiss, recall), settings.dimension)
        index = cls(LiveView(Store.create(folder, settings)), encoder)
        if (faiss, recall) != DEFAULT:
            index.set_faiss(faiss, recall)
        return index

    @classmethod
    def open(cls, folder: str | Path, encoder: Encoder | str | Path | None = None) -> "Index":
        """Open an index.

        Args:
            folder: the index's folder.
            encoder: the embedder, or its name or folder; None: the embedder named in the index is loaded when it is
                first needed.

        Raises:
            InputError: if the folder has no index, or the index was built with another embedder.
        """

        def load() -> Encoder | None:
            return Encoder.from_pretrained(encoder) if isinstance(encoder, str | Path) else encoder

        return cls(*_open(Path(folder), load))

    @property
    def folder(self) -> Path:
        """The index's folder."""
        return self._view.store.folder

    @property
    def settings(self) -> Settings:
        """The settings that were fixed when the index was created."""
        return self._view.store.settings

    @property
    def files(self) -> Files:
        """The files that documents were read from."""
        return Files(self._current().store)

    @property
    def encoder(self) -> Encoder | None:
        """The embedder, loaded on first use; None for an index of precomputed vectors.

        Raises:
            InputError: if the embedder named in the index is missing or has changed since the index was built.
        """
        with self._encoder_lock:
            store = self._view.store
            if self._encoder is None and store.settings.fingerprint:
                if not store.settings.embedder:
                    words = store.settings.embedder_words
                    raise InputError(
                        f"{store.folder} was built with {words}; give the encoder to Index.open."
                    )
                try:
                    encoder = Encoder.from_pretrained(store.settings.find_embedder(store.folder))
                except InputError as error:
                    raise InputError(
                        f"{store.folder} was built with {store.settings.embedder_words}, which cannot be loaded; "
                        f"open the index with the folder in which its embedder is now. {error}"
                    ) from None
                store.settings.check_encoder(store.folder, encoder)
                self._encoder = encoder
            return self._encoder

    def close(self) -> None:
        """Close the store's files, after a snapshot that is being written; the index can then not be used any more."""
        self._closed = True
        self._view.close()

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _current(self) -> LiveView:
        """The store and its vectors; opened anew if another index was made in the folder."""
        with self._view_lock:
            if self._closed:
                raise InputError(f"The index {self.folder} is closed; open it again.")
            if self._view.store.is_replaced():
                old, self._view = self._view, _open(self.folder, lambda: self._encoder)[0]
                old.store.close()
            return self._view

    # Writing

    def add(self, documents: Document | Iterable[Document], vectors: ArrayLike | None = None) -> Changes:
        """Add documents, read lazily and committed in batches; each document is added completely or not at all.

        Documents that are in the index with the same content are skipped, so an interrupted `add` can be continued by
        calling it again.

        Args:
            documents: one or more documents.
            vectors: (dimension,) for one document, (n, dimension) for n. Each document is then a single passage of any
                length, and its vector is normalised to unit length. None: documents are split into passages, which are
                encoded.

        Raises:
            InputError: for a document id that exists with other content, vectors of a wrong shape, or if another
                process is writing. Batches that were committed before remain.
        """
        return self._write(documents, vectors, replace=False)

    def upsert(self, documents: Document | Iterable[Document], vectors: ArrayLike | None = None) -> Changes:
        """Like `add`, but a document that exists with other content is replaced."""
        return self._write(documents, vectors, replace=True)

    def _write(
        self, documents: Document | Iterable[Document], vectors: ArrayLike | None, *, replace: bool
    ) -> Changes:
        view = self._current()
        store = view.store
        if isinstance(documents, Document):
            documents = [documents]
        rows = None
        if vectors is not None:
            documents = list(documents)
            rows = check_vectors(vectors, store.settings.dimension)
            if len(rows) != len(documents):
                raise InputError(
                    f"{len(documents)} documents and {len(rows)} vectors; expected one vector per document."
                )
        with store.lock():
            encoder = self.encoder if rows is None else None
            changes = write(store, encoder, documents, rows, replace=replace)
            with store.read() as tx:
                fitted, stored = store.map_passages(tx), store.count(tx, "passages")
            # A map fitted on few passages is poor, so it is fitted again each time the corpus has doubled.
            outdated = fitted < MIN_MAP_PASSAGES and stored >= 2 * max(fitted, 1)
            if store.settings.corpus_map != "none" and outdated:
                fit_map(store)
            view.forget_deletions()
        return changes

    def delete(self, ids: str | Iterable[str]) -> int:
        """Delete documents in one transaction; unknown ids are ignored.

        Returns:
            The number of documents deleted.
        """
        ids = [ids] if isinstance(ids, str) else list(ids)
        view = self._current()
        with view.store.lock():
            with view.store.write() as tx:
                n_deleted = sum(view.store.remove(tx, doc_id) for doc_id in ids)
            view.forget_deletions()
        return n_deleted

    def refit_map(self) -> None:
        """Fit the corpus map (whitening) on all stored vectors.

        `add` and `upsert` fit it at the first call and then each time the corpus has doubled, until it was fitted on at
        least 1,000 passages. Refit it after a large corpus has changed much.

        Raises:
            InputError: if the index's embedder uses no corpus map.
        """
        store = self._current().store
        if store.settings.corpus_map == "none":
            raise InputError(f"{self.folder}: the embedder needs no corpus map; leave out the refit.")
        with store.lock():
            fit_map(store)

    def set_faiss(self, faiss: str | None = None, recall: float | None = None) -> None:
        """Choose how the vectors are searched; each process makes its next snapshot so.

        Args:
            faiss: "Flat" for exact search, a FAISS factory string such as "IVF1024,SQ8", or "auto": exact search up to
                200 MB of vectors, then an IVF of one bit per dimension. "MRL128," before it means the first 128
                dimensions only. The best candidates are always scored on the whole vectors. None: as it was.
            recall: least mean share of the 10 and the 100 nearest passages that approximate search finds, measured when
                the snapshot is made; above 0, at most 1; .95 for a new index. None: as it was. Where no parameters
                reach it, search is exact.

        Raises:
            InputError: for a factory string that FAISS does not know or that cannot leave out deleted passages, or a
                recall out of range.
        """
        store = self._current().store
        with store.write() as tx:
            before = Wanted(*store.faiss(tx))
            wanted = Wanted(
                before.faiss if faiss is None else faiss, before.recall if recall is None else recall
            )
            check_wanted(wanted, store.settings.dimension)
            store.put_faiss(tx, *wanted)

    def save_snapshot(self) -> None:
        """Save a snapshot of the current vectors, from which the next process opens the index quickly."""
        self._current().save_snapshot()

    def repair(self) -> list[Problem]:
        """Mend what `index.store.check.find_problems` finds; returns what that was.

        The full text is written anew, and documents whose passages or vectors are bad are encoded again. A document
        whose text is not what was stored is marked, so that `upsert` replaces it; one whose metadata are not JSON is
        deleted.

        Raises:
            InputError: if the SQLite file is damaged, if another process is writing, or if the embedder is missing.
        """
        store = self._current().store
        problems = list(find_problems(store))
        if any(problem.is_file for problem in problems):
            raise InputError(
                f"The SQLite file of {self.folder} is damaged; restore a backup, or build the index again."
            )
        changed = {doc_id for problem in problems if problem.is_content for doc_id in problem.documents}
        bad = {doc_id for problem in problems if not problem.is_content for doc_id in problem.documents}
        if not problems:
            return []
        documents: list[Document] = []
        with store.read() as tx:
            for doc_id in bad:
                with contextlib.suppress(ValueError):  # metadata that are not JSON: the document is lost
                    documents += filter(None, [store.document(tx, doc_id)])
        with store.lock(), store.write() as tx:
            mend(store, tx, bad, changed)
        if documents:
            self.upsert(documents)
        return problems

    def vacuum(self) -> None:
        """Give the space of deleted documents back to the disk.

        Raises:
            InputError: if another process or thread is writing.
        """
        view = self._current()
        view.save_snapshot()
        with view.store.lock():
            view.forget_deletions(at_least=1)
        view.store.vacuum()

    # Reading

    @overload
    def search(
        self,
        query: str,
        k: int = 10,
        mode: Mode = "hybrid",
        filter: Filter | None = None,
        *,
        offset: int = 0,
        per_document: int | None = None,
        diversity: float = 0.0,
    ) -> Hits: ...
    @overload
    def search(
        self,
        query: Sequence[str] | ArrayLike,
        k: int = 10,
        mode: Mode = "hybrid",
        filter: Filter | None = None,
        *,
        offset: int = 0,
        per_document: int | None = None,
        diversity: float = 0.0,
    ) -> list[Any]: ...
    def search(
        self,
        query: str | Sequence[str] | ArrayLike,
        k: int = 10,
        mode: Mode = "hybrid",
        filter: Filter | None = None,
        *,
        offset: int = 0,
        per_document: int | None = None,
        diversity: float = 0.0,
    ) -> list[Any]:
        """Find the k best passages for each query.

        Args:
            query: a text, or texts, or a vector (dimension,), or vectors (n, dimension) as the embedder returns them.
                For vectors, "hybrid" means "dense". The encoder's `n_truncated` counts the texts that it truncated to
                its context.
            k: number of hits. Fewer are returned only if fewer passages pass the filter or, for "lexical", match.
            mode: "dense" ranks by cosine, "lexical" by BM25. Scores are exact; of more than 200 MB of vectors, some of
                the nearest may be missed (see `set_faiss`). "hybrid" combines the exact scores of both
                as `settings.fusion` says, over the union of the best max(100, 10 k) passages of each.
            filter: conditions on the documents' metadata, all of which must hold. A field must have one value
                (`{"status": "Final"}`), one of several (`["Final", "Active"]`), or meet all of an object of operators:
                `gte`, `gt`, `lte`, `lt` (a year or month compares with that part of a date), `in` (a list), `ne` (a
                value or a list; also true without the field), `contains` (part of a text), `exists` (true or false). A
                list field matches if any of its values does; `author.name` is a field inside an object. true and false
                are no numbers. `doc_id` is the document's id. `{"$or": [filter, …]}`, `"$and"` and `{"$not": filter}`
                combine filters.
            offset: number of best passages that are left out, as for a second page of results.
            per_document: at most so many passages of one document; None for any number.
            diversity: 0 to 1; above 0, a passage counts less the more it is like those before it (maximal marginal
                relevance among the best max(50, 4 (k + offset))).

        Returns:
            `Hits`, a list, best first, with the attribute `exact`; for several queries one per query.

        Raises:
            InputError: for an empty query, a number out of range, an unknown mode, a malformed filter, vectors of a
                wrong shape, or a text query in an index of precomputed vectors (except in mode "lexical").
        """
        current = self._current()
        options = Options(k, mode, filter, offset, per_document, diversity)
        if isinstance(query, str):
            return search_texts(current, self._encoder_for(mode), [query], options)[0]
        if isinstance(query, Sequence) and all(isinstance(one, str) for one in query):
            return search_texts(current, self._encoder_for(mode), cast(list[str], list(query)), options)
        queries = check_vectors(cast(ArrayLike, query), current.store.settings.dimension)
        hits = search_vectors(current, queries, options)
        return hits[0] if np.ndim(cast(ArrayLike, query)) == 1 else hits

    def _encoder_for(self, mode: Mode) -> Encoder | None:
        return None if mode == "lexical" else self.encoder

    def get(self, doc_id: str) -> Document | None:
        """The document with this id, or None if there is none."""
        store = self._current().store
        with store.read() as tx:
            return store.document(tx, doc_id)

    def idf(self, terms: Iterable[str]) -> dict[str, float]:
        """Inverse document frequency of terms over the passages, Lucene's BM25's: ln(1 + (N - n + 1/2) / (n + 1/2)).

        Args:
            terms: Porter stems and bigrams, as the keys of `embed.text.content_terms`.
        """
        store = self._current().store
        with store.read() as tx:
            n_passages, n_with = store.count(tx, "passages"), store.n_passages_with(tx, terms)
        return {term: math.log(1 + (n_passages - n + 0.5) / (n + 0.5)) for term, n in n_with.items()}

    def document_ids(self) -> list[str]:
        """The ids of all documents, in insertion order."""
        store = self._current().store
        with store.read() as tx:
            return store.document_ids(tx)

    def unknown_fields(self, filter: Filter) -> list[str]:
        """The fields of `filter` that no document has."""
        with self._current().store.read() as tx:
            return unknown_fields(tx, filter)

    def stats(self) -> dict[str, Any]:
        """Counts and settings, JSON-serialisable.

        "vectors" is how the snapshot on the disk is searched: its type, parameters and measured recall; None if there
        is none.
        """
        store = self._current().store
        snapshot = Manifest.read(store.folder)
        with store.read() as tx:
            return {
                "documents": store.count(tx, "documents"),
                "passages": store.count(tx, "passages"),
                "sequence": store.sequence(tx),
                "map_passages": store.map_passages(tx),
                "wanted": Wanted(*store.faiss(tx))._asdict(),
                "vectors": snapshot.report() if snapshot else None,
                **json.loads(store.settings.to_json()),
            }


def _open(folder: Path, load: Callable[[], Encoder | None]) -> tuple[LiveView, Encoder | None]:
    """The index in `folder` and the encoder that `load` gives, if the index was built with it; else an InputError."""
    view = LiveView.open(folder)
    try:
        encoder = load()
        if encoder:
            view.store.settings.check_encoder(folder, encoder)
    except BaseException:
        view.close()
        raise
    return view, encoder
