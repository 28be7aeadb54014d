"""Retrieval evaluation: BM25, a baseline, and an embedder of ours beside them."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from embed.config import Pooling
from embed.encoder import Encoder
from gpt_core.errors import InputError
from gpt_core.extras import extra
from gpt_core.hub import DEFAULT_MODEL
from gpt_core.report import print_report
from index.baselines import Baseline, bm25
from index.collection import Collection, Run
from index.index import Index, Mode

DEPTH = 100  # results per query
COLUMNS = ("dataset", "system", "model", "nDCG@10", "Recall@100", "MRR@10")
# nDCG@10 on test splits (MTEB): a run that misses them by more than the tolerance measures something else
PUBLISHED = {("all-MiniLM-L6-v2", "scifact"): 0.645, ("all-MiniLM-L6-v2", "nfcorpus"): 0.316}
TOLERANCE = 0.01


def evaluate_retrieval(
    *,
    data: list[str],
    embedder: str = DEFAULT_MODEL,
    baseline: str = "all-MiniLM-L6-v2",
    split: str = "test",
    max_tokens: int = 256,
) -> None:
    """Score an embedder's search, with BM25 and a baseline beside it: nDCG@10, Recall@100, MRR@10 of ir-measures.

    Each document is one text, title and text; the embedders cut it at max_tokens of their own tokens, BM25 reads all
    of it. Rows: bm25 (bm25s, Lucene's variant, k1 1.5, b 0.75, English stop words, Snowball stemmer, Chinese
    bigrams); baseline; dense and hybrid, what an index with the embedder answers, its corpus map fitted on the corpus
    alone; floor, whitened token embeddings of the embedder's GPT, which its layers should beat. Prints a table and
    ends with a line of JSON. No row of ours is printed where the baseline misses its published score by more than
    0.01.

    Args:
        data: BEIR folders (corpus.jsonl, queries.jsonl, qrels/<split>.tsv).
        embedder: ours: a model folder, a run's out_dir, or a known name.
        baseline: a sentence-transformers model: a known name or a folder. Its vectors are kept in the model cache.
        split: which judgements, such as test or dev.
        max_tokens: longest text in tokens.
    """
    if not data:
        raise InputError("--data names nothing; expected BEIR folders.")
    collections = [Collection.load(folder, split) for folder in data]
    encoder = Encoder.from_pretrained(embedder)
    peer = Baseline(baseline, max_tokens)
    rows: dict[str, list[dict[str, Any]]] = {}
    for collection in collections:
        figures = score(collection, peer.run(collection, DEPTH))
        check_published(baseline, collection, figures["nDCG@10"])
        rows[collection.name] = [
            _row(collection, "bm25", "bm25s", score(collection, bm25(collection, DEPTH))),
            _row(collection, "baseline", baseline, figures),
        ]
    floor = replace(encoder.config, pooling=Pooling("mean", layer=0), corpus_map="whiten", map_components=256)
    floor_encoder = Encoder(encoder.model, encoder.tokenizer, floor, name=f"{embedder}, token embeddings")
    for collection in collections:
        own = index_runs(collection, encoder, ("dense", "hybrid"), max_tokens)
        own["floor"] = index_runs(collection, floor_encoder, ("dense",), max_tokens)["dense"]
        rows[collection.name] += [
            _row(collection, name, embedder, score(collection, own[name])) for name in own
        ]
    results = [row for name in rows for row in rows[name]]
    packages = ("sentence-transformers", "bm25s", "ir-measures")
    print_report(results, COLUMNS, _ratios(rows), packages)


def score(collection: Collection, run: Run) -> dict[str, float]:
    """nDCG@10 (linear gains, as trec_eval), Recall@100 and MRR@10, means over the collection's queries."""
    with extra("eval"):
        import ir_measures
    named = {
        "nDCG@10": ir_measures.nDCG @ 10,
        "Recall@100": ir_measures.R @ 100,
        "MRR@10": ir_measures.RR @ 10,
    }
    figures = ir_measures.calc_aggregate(list(named.values()), collection.qrels, run)
    return {name: figures[measure] for name, measure in named.items()}


def check_published(model: str, collection: Collection, figure: float) -> None:
    """Raise InputError if `model` misses its published nDCG@10 on the collection's test split, where one is known."""
    published = PUBLISHED.get((model, collection.name)) if collection.split == "test" else None
    if published is not None and abs(figure - published) > TOLERANCE:
        raise InputError(
            f"{model} reaches nDCG@10 {figure:.4f} on {collection.name}, but {published} is published: "
            "something else is measured here, so no row of ours is printed."
        )


def index_runs(
    collection: Collection, encoder: Encoder, modes: Sequence[Mode], max_tokens: int
) -> dict[str, Run]:
    """Search a real index of the collection, in which each document is one passage, in several modes."""
    vectors = encoder.encode_document(collection.texts, max_tokens=max_tokens, progress=True)
    names, texts = list(collection.queries), list(collection.queries.values())
    runs: dict[str, Run] = {mode: {} for mode in modes}
    with tempfile.TemporaryDirectory() as scratch:
        length = min(256, encoder.max_tokens)  # of passages that are split, of which there are none here
        with Index.create(Path(scratch, "index"), encoder, max_tokens=length, overlap=0) as index:
            index.add(collection.documents.values(), vectors)
            for mode in modes:
                for start in tqdm(range(0, len(texts), 256), desc=f"searching, {mode}", disable=None):
                    hits = index.search(texts[start : start + 256], k=DEPTH, mode=mode)
                    for name, found in zip(names[start : start + 256], hits, strict=True):
                        runs[mode][name] = {hit.doc_id: hit.score for hit in found}
    return runs


def _row(collection: Collection, system: str, model: str, figures: dict[str, float]) -> dict[str, Any]:
    row = {"dataset": collection.name, "split": collection.split, "system": system, "model": model}
    return row | figures | {"documents": len(collection.documents), "queries": len(collection.queries)}


def _ratios(rows: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Ours over the peers', for each collection's nDCG@10."""
    ratios = {}
    for dataset, systems in rows.items():
        figure = {row["system"]: row["nDCG@10"] for row in systems}
        for pair in ("dense/baseline", "dense/floor", "hybrid/baseline", "hybrid/bm25"):
            ours, peer = pair.split("/")
            if figure[peer]:
                ratios[f"{pair} nDCG@10 {dataset}"] = figure[ours] / figure[peer]
    return ratios
