"""Retrieval evaluation: BM25, a baseline model, an embedder and its untrained GPT under the same protocol."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from tqdm import tqdm

from embed.data.bm25 import BM25
from embed.encoding.contenders import OF_BASE, Contender, contenders, names_of, variants
from embed.encoding.encoder import Dtype
from embed.encoding.rerank import load_reranker, rerank_run
from embed.evaluation.contamination import count_seen, training_texts
from embed.evaluation.published import BM25S, check_published
from gpt_core.common.errors import InputError
from gpt_core.evaluation.report import print_report
from gpt_core.hardware.device import DeviceName
from gpt_core.hub.locate import DEFAULT_EMBEDDER
from index.evaluation.built_index import CachingEncoder, built_index, search_documents
from index.evaluation.collection import Collection, Run
from index.evaluation.metrics import METRICS, Figures, bootstrap, score_queries
from index.evaluation.rank_vectors import Retrievers
from index.evaluation.runs import read_run, write_run
from index.index import Index
from index.search.search import Mode

Row = Literal[
    "bm25",
    "index-lexical",
    "index-dense",
    "index-hybrid",
    "baseline",
    "random",
    "raw-mean",
    "raw-weightedmean",
    "floor",
    "dense",
    "unmapped",
    "int8",
    "dims",
    "hybrid",
    "rerank",
]

MODES: tuple[Mode, ...] = ("lexical", "dense", "hybrid")
RESULTS_PER_QUERY = 100  # as many as Recall@100 needs
COLUMNS = ("dataset", "system", "model", "dimension", "bytes", *METRICS, "vs bm25", "vs baseline")
RATIO_PAIRS = (
    *(
        "dense/baseline",
        "dense/bm25",
        "dense/floor",
        "dense/raw-weightedmean",
        "int8/dense",
        "dense/unmapped",
    ),
    *("hybrid/baseline", "hybrid/bm25", "hybrid/dense", "hybrid/baseline-hybrid"),
    *("index-lexical/bm25", "index-hybrid/baseline", "index-hybrid/bm25", "index-hybrid/hybrid"),
)


def evaluate_retrieval(
    *,
    data: list[str],
    embedder: str = DEFAULT_EMBEDDER,
    base: str | None = None,
    baseline: str = "all-MiniLM-L6-v2",
    split: str = "test",
    max_tokens: int = 256,
    rows: list[Row] | None = None,
    dims: tuple[int, ...] = (256, 128, 64),
    rerank_depth: int = 10,
    runs: str | None = None,
    peer_runs: list[str] | None = None,
    training_data: list[str] | None = None,
    device: DeviceName = "cpu",
    dtype: Dtype = "float32",
) -> None:
    """Evaluate an embedder's retrieval against BM25 and a baseline: nDCG@10, Recall@100, MRR@10 by ir-measures.

    A document is its title and text. The embedders truncate it to max_tokens of their own tokens; BM25 indexes all of
    it. Only the rows of index divide it into passages. All searches are exact. Rows:

    - bm25: bm25s, Lucene's variant, k1 1.5, b 0.75, of the index's words (`embed.text.analysis`) and Porter stems.
    - index-lexical, index-dense, index-hybrid: what a user of an index of the embedder finds in each search mode. The
      index is built and searched as by build_index and search, with passages of max_tokens of the whole document; a
      document has the score of its best passage.
    - baseline: a sentence-transformers model.
    - random, raw-mean, raw-weightedmean: a GPT of the base's shape with random weights; the base's last layer.
    - floor: mean of the base's token embeddings, whitened on the corpus; the base's layers should beat it.
    - dense: the embedder, with its corpus map.
    - unmapped: the embedder without its corpus map, if it has one, as other tools compute it.
    - int8, dims: like dense, with document vectors in 8 bits; with vectors truncated to `dims` dimensions.
    - hybrid: each of these fused with the index's lexical retriever: the embedder by its own fusion setting, the others
      by tm2c2 with weight 0.8.
    - rerank: BM25's top documents reordered by the base's log-probability of the query after the document (SGPT-CE).

    "vs" columns are 95 % intervals of the difference in nDCG@10: paired bootstrap over queries, 10,000 draws, seed 0.
    bytes is the size of a stored vector. Prints a table, then one line of JSON; prints neither if BM25 or the baseline
    does not reproduce its published score.

    Args:
        data: BEIR folders (corpus.jsonl, queries.jsonl, qrels/<split>.tsv).
        embedder: the evaluated embedder: a model folder, a run's out_dir, or a known name.
        base: the GPT for the untrained rows and rerank; default: the embedder's own GPT.
        baseline: known name or folder of the baseline model. All vectors are cached in the model cache.
        split: split of the judgements, such as test or dev.
        max_tokens: maximum text length in tokens.
        rows: rows to compute; default: all but the slow ones (rerank and, without --base, random and raw rows).
        dims: numbers of dimensions for the dims rows.
        rerank_depth: number of BM25's documents that rerank reorders.
        runs: folder to write every row's results to, as TREC run files <dataset>.<row>.run.
        peer_runs: run files of other systems, named in the same way; each becomes a row.
        training_data: the embedder's training data, as for train_embedder; near-duplicates of queries and documents
            in it are counted (leakage).
        device: device of the models.
        dtype: number format of our models' matrix products.
    """
    if not data:
        raise InputError("--data is empty; give at least one BEIR folder.")
    asked = set(rows or _usual_rows(base))
    if "hybrid" in asked and not names_of(asked):
        raise InputError("--rows has hybrid, but no row to combine with BM25; add one, such as dense.")
    collections = [Collection.load(folder, split) for folder in data]
    if len({collection.name for collection in collections}) < len(collections):
        raise InputError("--data has two folders with the same name; rename one, since rows are named by it.")
    peers = _peer_runs(collections, peer_runs or [])
    seen = _seen(collections, training_data) if training_data else {}
    tables = [
        _Table(collection, Retrievers(collection), "hybrid" in asked, runs) for collection in collections
    ]
    found = [_bm25(collection) for collection in collections]
    for table, run in zip(tables, found, strict=True):
        table.add("bm25", "bm25s", run, known_as=BM25S)
    modes = [mode for mode in MODES if f"index-{mode}" in asked]
    if modes:
        encoder = CachingEncoder.from_pretrained(embedder, dtype=dtype, device=device)
        for table in tables:
            with built_index(table.collection, encoder, max_tokens) as index:
                table.search(index, modes)
        del encoder  # its memory is free for the next models
    for contender in contenders(
        names_of(asked),
        embedder=embedder,
        base=base,
        baseline=baseline,
        max_tokens=max_tokens,
        device=device,
        dtype=dtype,
    ):
        for table in tables:
            table.compete(contender, asked, dims)
    if "rerank" in asked:
        reranker = load_reranker(base or embedder, device)
        for table, run in zip(tables, found, strict=True):
            texts = dict(zip(table.collection.documents, table.collection.texts, strict=True))
            cut_before = reranker.n_truncated
            reranked = rerank_run(reranker, table.collection.queries, texts, run, rerank_depth)
            table.add("rerank", base or embedder, reranked, cut=reranker.n_truncated - cut_before)
    for table in tables:
        for system, run in peers[table.collection.name].items():
            table.add(system, system, run)
    packages = ("sentence-transformers", "bm25s", "ir-measures")
    results = [
        row | seen.get(row["dataset"], {}) for table in tables for row in table.finished("bm25" in asked)
    ]
    print_report(results, COLUMNS, {k: v for table in tables for k, v in table.ratios().items()}, packages)


class _Table:
    """The rows of one collection, and every row's nDCG@10 per query for the intervals."""

    def __init__(
        self, collection: Collection, retrievers: Retrievers, hybrid: bool, runs: str | None
    ) -> None:
        self.collection, self._retrievers, self._hybrid, self._runs = collection, retrievers, hybrid, runs
        self._rows: list[dict[str, Any]] = []
        self._figures: dict[str, Figures] = {}

    def compete(self, contender: Contender, asked: set[Row], dims: Sequence[int]) -> None:
        texts = self.collection.texts
        queries = contender.encode(list(self.collection.queries.values()), "query")
        documents = contender.encode(texts, "document")
        of_model: dict[str, Any] = {"cut": contender.n_cut(texts, "document")}
        for variant in tqdm(
            variants(contender, queries, documents, asked, dims),
            desc=f"searching {self.collection.name}, {contender.name}",
            disable=None,
            leave=False,
        ):
            if variant.name == "dense" and "dense" not in asked:
                continue
            size: dict[str, Any] = {"dimension": variant.stored.shape[1], "bytes": variant.bytes_each}
            vectors = variant.queries, variant.stored
            self.add(
                variant.name,
                contender.model,
                self._retrievers.dense(*vectors, RESULTS_PER_QUERY),
                known_as=contender.weights_sha256,
                **size,
                **of_model,
            )
            if self._hybrid:
                name = "hybrid" if variant.name == "dense" else f"{variant.name}-hybrid"
                run = self._retrievers.hybrid(*vectors, RESULTS_PER_QUERY, contender.config.fusion)
                self.add(name, contender.model, run, **size, **of_model)

    def search(self, index: Index, modes: Sequence[Mode]) -> None:
        """Add a row for each mode of searching an index of the collection."""
        settings, passages = index.settings, index.stats()["passages"]
        size: dict[str, Any] = {
            "dimension": settings.dimension,
            "bytes": settings.dimension * np.dtype(settings.dtype).itemsize,
        }
        for mode in modes:
            run = search_documents(index, self.collection.queries, mode, RESULTS_PER_QUERY)
            of_mode: dict[str, Any] = {} if mode == "lexical" else size
            self.add(f"index-{mode}", settings.embedder, run, **of_mode, passages=passages)

    def add(self, system: str, model: str, run: Run, known_as: str | None = None, **extra: Any) -> None:
        """Add a row; `known_as` is the system as `check_published` knows it, None for one without published scores."""
        figures = score_queries(self.collection, run)
        means = dict(zip(METRICS, figures.mean(axis=0).tolist(), strict=True))
        check_published(
            known_as,
            self.collection.sha256,
            "nDCG@10",
            means["nDCG@10"],
            model=model,
            data=self.collection.name,
        )
        if self._runs:
            write_run(self._runs, self.collection, system, run)
        about = {"dataset": self.collection.name, "split": self.collection.split, "system": system}
        counts = {"documents": len(self.collection.documents), "queries": len(self.collection.queries)}
        self._rows.append(about | {"model": model} | extra | means | counts)
        self._figures[system] = figures[:, 0]

    def finished(self, with_bm25: bool) -> list[dict[str, Any]]:
        """All rows, with intervals against BM25 and the baseline."""
        compared = [
            (row, other)
            for other in ("bm25", "baseline")
            for row in self._rows
            if row["system"] != other and other in self._figures
        ]
        differences = [self._figures[row["system"]] - self._figures[other] for row, other in compared]
        for (row, other), (low, high) in zip(compared, bootstrap(differences), strict=True):
            row[f"vs {other}"] = [low, high]
        return [row for row in self._rows if with_bm25 or row["system"] != "bm25"]

    def ratios(self) -> dict[str, float]:
        """nDCG@10 of our rows divided by that of the peers' rows, by name."""
        figure = {row["system"]: row["nDCG@10"] for row in self._rows}
        ratios = {}
        for pair in (*RATIO_PAIRS, *(f"{name}/dense" for name in figure if name.startswith("dim-"))):
            ours, peer = pair.split("/")
            if ours in figure and figure.get(peer):
                ratios[f"{pair} nDCG@10 {self.collection.name}"] = figure[ours] / figure[peer]
        return ratios


def _usual_rows(base: str | None) -> list[Row]:
    return [row for row in get_args(Row) if row != "rerank" and (base or row not in OF_BASE)]


def _bm25(collection: Collection) -> Run:
    found = BM25(collection.texts).search(
        list(collection.queries.values()), min(RESULTS_PER_QUERY, len(collection.documents))
    )
    return collection.run(*found, above=0)  # a score of 0: no term in common


def _peer_runs(collections: Sequence[Collection], paths: Sequence[str]) -> dict[str, dict[str, Run]]:
    """Read the run files of other systems: collection name → system → run."""
    runs: dict[str, dict[str, Run]] = {collection.name: {} for collection in collections}
    for path in map(Path, paths):
        of = [collection for collection in collections if path.name.startswith(f"{collection.name}.")]
        if not of:
            raise InputError(
                f"{path} belongs to none of the collections {', '.join(runs)}; expected a file name such as "
                f"{collections[0].name}.system.run."
            )
        system = path.name.removeprefix(f"{of[0].name}.").removesuffix(".run")
        ours = system in get_args(Row) or system.startswith("dim-") or system.endswith("-hybrid")
        if ours or system in runs[of[0].name]:
            raise InputError(f"{path} would be a second row called {system}; rename the file.")
        runs[of[0].name][system] = read_run(path, of[0])
    return runs


def _seen(collections: Sequence[Collection], training_data: Sequence[str]) -> dict[str, dict[str, int]]:
    """Count queries and documents of each collection that also occur, or nearly occur, in the training data."""
    training = training_texts(training_data)
    return {
        c.name: {
            "near-duplicate queries": count_seen(f"{c.name}'s queries", list(c.queries.values()), training),
            "near-duplicate documents": count_seen(f"{c.name}'s documents", c.texts, training),
        }
        for c in collections
    }
