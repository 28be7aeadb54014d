"""The public class `Index`: create, open, add, upsert, delete, search."""

import contextlib
import json
import math
import sqlite3
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar, Unpack, overload

from numpy.typing import ArrayLike

from embed.encoding.embedder import Embedder
from embed.encoding.load import load_embedder
from embed.encoding.runner import Runner
from embed.network.config import Fusion
from gpt_core.common.errors import InputError
from index.dense.ann import AUTO, DEFAULT, Wanted, check_wanted
from index.dense.backend import LiveVectors
from index.dense.live import LiveView
from index.dense.live_milvus import LiveMilvus
from index.dense.milvus import Address, MilvusCopy
from index.lexical.live import LiveWords
from index.reading.document import Document
from index.search.filters import Filter, unknown_fields
from index.search.rank import Hits
from index.search.search import Mode, MoreOptions, Options, search
from index.store.check import Problem, find_problems, mend
from index.store.connections import ReplacedError
from index.store.files import Files
from index.store.reembed import Reembedded, reembed
from index.store.settings import Settings
from index.store.store import Store
from index.store.words import n_passages_with
from index.store.write import Changes, check_vectors, fit_map, write

T = TypeVar("T")
FAISS = "faiss"
MIN_MAP_PASSAGES = 1000  # a corpus map fitted on fewer passages is fitted again when the corpus has doubled


class Index:
    """Searchable documents in a folder. Any number of threads and processes can search; one at a time can write.

    Get an index from `create` or `open`; end it with `close` or a `with` block. A search sees everything that any
    process committed before the search began. If the folder is deleted and a new index is made there, the next call
    works on the new index, or raises InputError if that was built with another embedder.
    """

    def __init__(self, view: LiveVectors, encoder: Embedder | None) -> None:
        self._view, self._words = view, LiveWords(view.store)
        self._given = self._encoder = encoder  # as the caller gave it; as it is loaded
        self._encoder_lock, self._view_lock = threading.Lock(), threading.Lock()
        self._closed = False

    @classmethod
    def create(
        cls,
        folder: str | Path,
        encoder: Embedder | None = None,
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
    def open(cls, folder: str | Path, encoder: Embedder | str | Path | None = None) -> "Index":
        """Open an index.

        Args:
            folder: the index's folder.
            encoder: the embedder, or its name or folder; None: the embedder named in the index is loaded when it is
                first needed.

        Raises:
            InputError: if the folder has no index, or the index was built with another embedder.
        """

        def load() -> Embedder | None:
            return load_embedder(encoder) if isinstance(encoder, str | Path) else encoder

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
    def encoder(self) -> Embedder | None:
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
                    encoder = load_embedder(store.settings.find_embedder(store.folder))
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
        self._words.wait()

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _current(self) -> LiveVectors:
        """The store and its vectors; opened anew if another index was made in the folder."""
        return self._now()[0]

    def _now(self) -> tuple[LiveVectors, LiveWords]:
        """The store and its vectors, and its postings; as `_current`."""
        with self._view_lock:
            if self._closed:
                raise InputError(f"The index {self.folder} is closed; open it again.")
            if self._view.store.is_replaced():
                self._reopen()
            return self._view, self._words

    def _reopen(self) -> None:
        """Open the index that is in the folder now; the caller holds `_view_lock`."""
        old, self._view = self._view, _open(self.folder, lambda: self._given)[0]
        old.store.close()
        self._words = LiveWords(self._view.store)
        with self._encoder_lock:
            self._encoder = self._given  # None: the embedder that the index names now

    # Writing

    def add(
        self,
        documents: Document | Iterable[Document],
        vectors: ArrayLike | None = None,
        *,
        runner: Runner | None = None,
    ) -> Changes:
        """Add documents, read lazily and committed in batches; each document is added completely or not at all.

        Documents that are in the index with the same content are skipped, so an interrupted `add` can be continued by
        calling it again.

        Args:
            documents: one or more documents.
            vectors: (dimension,) for one document, (n, dimension) for n. Each document is then a single passage of any
                length, and its vector is normalised to unit length. None: documents are split into passages, which are
                encoded.
            runner: where passages are encoded; None: in this process. This process alone writes.

        Raises:
            InputError: for a document id that exists with other content, vectors of a wrong shape, or if another
                process is writing. Batches that were committed before remain.
        """
        return self._write(documents, vectors, runner, replace=False)

    def upsert(
        self,
        documents: Document | Iterable[Document],
        vectors: ArrayLike | None = None,
        *,
        runner: Runner | None = None,
    ) -> Changes:
        """Like `add`, but a document that exists with other content is replaced."""
        return self._write(documents, vectors, runner, replace=True)

    def _write(
        self,
        documents: Document | Iterable[Document],
        vectors: ArrayLike | None,
        runner: Runner | None,
        *,
        replace: bool,
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
            changes = write(store, encoder, documents, rows, replace=replace, runner=runner)
            with store.read() as tx:
                fitted, stored = store.map_passages(tx), store.count(tx, "passages")
            # A map fitted on few passages is poor, so it is fitted again each time the corpus has doubled.
            outdated = fitted < MIN_MAP_PASSAGES and stored >= 2 * max(fitted, 1)
            if store.settings.corpus_map != "none" and outdated:
                with store.write() as tx:
                    fit_map(store, tx, store.settings)
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
        with store.lock(), store.write() as tx:
            fit_map(store, tx, store.settings)

    def reembed(self, encoder: Embedder) -> Reembedded:
        """Change the embedder: encode all stored passages with `encoder`, then use their new vectors at once.

        Meanwhile searches go on with the old vectors, and nothing can be written. An interrupted call is continued by
        another one with the same embedder. Other processes that have the index open load its new embedder at their next
        search, unless they were given one. Passages are not divided anew.

        Raises:
            InputError: if passages are longer than the embedder's context, it is the index's already, or another
                process is writing.
        """
        view = self._current()
        with view.store.read() as tx:
            wanted = Wanted(*view.store.faiss(tx))
        try:
            check_wanted(wanted, encoder.dimension)
        except InputError as error:
            raise InputError(
                f"{self.folder} is searched with {wanted.faiss}, which does not suit the new embedder; choose another "
                f"type first, as with manage_index.py snapshot --faiss auto. {error}"
            ) from None
        with view.store.lock():
            done = reembed(view.store, encoder)
        with self._view_lock:
            self._given = encoder
            self._reopen()
        self.save_snapshot()
        return done

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
            wanted = Wanted(*store.faiss(tx)).changed(faiss, recall)
            check_wanted(wanted, store.settings.dimension)
            store.put_faiss(tx, *wanted)

    def set_store(self, store: str) -> None:
        """Choose where the nearest vectors are searched; kept in the index, for all that open it from now on.

        SQLite keeps documents, full text and vectors in any case. What is not yet in Milvus is copied there before a
        search, and by `save_snapshot`.

        Args:
            store: "faiss" for snapshots in the index's folder, or the address of a collection of Milvus of this index's
                own: milvus://HOST:PORT/COLLECTION, or milvus:///PATH/FILE.db for Milvus Lite, which one process at a
                time can use. A server's token, such as USER:PASSWORD, is in the environment variable
                ZHIZHI_MILVUS_TOKEN.

        Raises:
            InputError: for another text, or if Milvus cannot be used; the index is as before then.
        """
        own = self._current().store
        with own.read() as tx:
            same = store == (own.milvus(tx) or FAISS)
        if same:
            return
        address = "" if store == FAISS else store
        if address:
            MilvusCopy(Address.parse(address)).close()
        with own.write() as tx:
            own.put_milvus(tx, address)
        with self._view_lock:
            self._reopen()

    def save_snapshot(self) -> None:
        """Save a snapshot of the current vectors and postings, with which the next process searches at once."""
        self._current().save_snapshot()
        self._words.save()

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
        self.save_snapshot()
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
        **more: Unpack[MoreOptions],
    ) -> Hits: ...
    @overload
    def search(
        self,
        query: Sequence[str] | ArrayLike,
        k: int = 10,
        mode: Mode = "hybrid",
        filter: Filter | None = None,
        **more: Unpack[MoreOptions],
    ) -> list[Any]: ...
    def search(
        self,
        query: str | Sequence[str] | ArrayLike,
        k: int = 10,
        mode: Mode = "hybrid",
        filter: Filter | None = None,
        **more: Unpack[MoreOptions],
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
            explain: whether hits have an `explanation`: the retrievers' shares of the score, the words' shares of BM25.
            rerank: a language model that orders the best `n_reranked` passages again, by the log-probability of the
                query after each (SGPT's cross-encoder); each costs a forward. Not thread-safe.
            n_reranked: number of passages that `rerank` orders; the others follow in their order.

        Returns:
            `Hits`, a list, best first, with the attribute `exact`; for several queries one per query.

        Raises:
            InputError: for an empty query, a number out of range, an unknown mode, a malformed filter, vectors of a
                wrong shape, or a text query in an index of precomputed vectors (except in mode "lexical").
        """
        options = Options(k, mode, filter, **more)
        return self._read(lambda view, words: search(view, words, lambda: self.encoder, query, options))

    def _read(self, use: Callable[[LiveVectors, LiveWords], T]) -> T:
        """`use` of the index as it is now, even if it was replaced or got another embedder in the meantime."""
        try:
            return use(*self._now())
        except ReplacedError:
            return use(*self._now())

    def get(self, doc_id: str) -> Document | None:
        """The document with this id, or None if there is none."""
        return self._ask(lambda store, tx: store.document(tx, doc_id))

    def idf(self, terms: Iterable[str]) -> dict[str, float]:
        """Inverse document frequency of terms over the passages, Lucene's BM25's: ln(1 + (N - n + 1/2) / (n + 1/2)).

        Args:
            terms: Porter stems and bigrams, as the keys of `embed.text.content_terms`.
        """
        terms = list(terms)
        n_passages, n_with = self._ask(
            lambda store, tx: (store.count(tx, "passages"), n_passages_with(tx, terms))
        )
        return {term: math.log(1 + (n_passages - n + 0.5) / (n + 0.5)) for term, n in n_with.items()}

    def document_ids(self) -> list[str]:
        """The ids of all documents, in insertion order."""
        return self._ask(lambda store, tx: store.document_ids(tx))

    def unknown_fields(self, filter: Filter) -> list[str]:
        """The fields of `filter` that no document has."""
        return self._ask(lambda store, tx: unknown_fields(tx, filter))

    def stats(self) -> dict[str, Any]:
        """Counts and settings, JSON-serialisable.

        "vectors" is how the snapshot on the disk is searched: its type, parameters and measured recall; None if there
        is none. "store" is what `set_store` takes.
        """
        vectors = self._current().report()
        return self._ask(
            lambda store, tx: {
                "documents": store.count(tx, "documents"),
                "passages": store.count(tx, "passages"),
                "sequence": store.sequence(tx),
                "map_passages": store.map_passages(tx),
                "wanted": Wanted(*store.faiss(tx))._asdict(),
                "vectors": vectors,
                "store": store.milvus(tx) or FAISS,
                **json.loads(store.settings.to_json()),
            }
        )

    def _ask(self, question: Callable[[Store, sqlite3.Connection], T]) -> T:
        """`question` of the store in a read transaction."""

        def ask(view: LiveVectors, _: LiveWords) -> T:
            with view.store.read() as tx:
                return question(view.store, tx)

        return self._read(ask)


def _open(folder: Path, load: Callable[[], Embedder | None]) -> tuple[LiveVectors, Embedder | None]:
    """The index in `folder` and the encoder that `load` gives, if the index was built with it; else an InputError."""
    view: LiveVectors = LiveView.open(folder)
    with view.store.read() as tx:
        address = view.store.milvus(tx)
    if address:
        view = LiveMilvus(view.store, Address.parse(address))
    try:
        encoder = load()
        if encoder:
            view.store.settings.check_encoder(folder, encoder)
    except BaseException:
        view.close()
        raise
    return view, encoder
