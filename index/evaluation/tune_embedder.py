"""Grid search of an untrained embedder's settings: layer, pooling, prompt, corpus map, fusion."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from embed.data.vectors import Vectors, unit_length
from embed.encoding.encoder import Encoder
from embed.network.config import EmbedderConfig, Fusion, MapKind, Pooling
from embed.network.corpus_map import CorpusMap
from embed.network.pooling import pool
from gpt_core.common.errors import InputError
from gpt_core.common.files import atomic_write
from gpt_core.hub.locate import DEFAULT_EMBEDDER
from index.dense.scores import Scores, Spread
from index.evaluation.collection import Collection
from index.evaluation.metrics import score
from index.index import Index
from index.search.rank import fuse

FUSIONS = [
    Fusion("rrf"),
    *(Fusion(kind, w / 10) for kind, w in product(("tm2c2", "z"), range(1, 10))),  # type: ignore[arg-type]
]

Figures = dict[str, float]  # collection → nDCG@10


def tune_embedder(
    *,
    data: list[str],
    out: str,
    embedder: str = DEFAULT_EMBEDDER,
    layers: list[int] | None = None,
    prompts: list[str] | None = None,
    documents: int = 600,
    queries: int = 250,
) -> None:
    """Choose an embedder's settings on development collections, and write them as embedder.json.

    With layers, which an untrained embedder needs, evaluates dense search with every combination of layer, pooling,
    prompt and corpus map, and chooses the highest mean nDCG@10 over the collections. Then chooses fusion and weight for
    hybrid search with these settings in the same way.

    Args:
        data: BEIR folders with the split dev, else train (never test), or JSON lines of query and positive.
        out: file to write the chosen settings to.
        embedder: a model folder, a run's out_dir, or a known name.
        layers: layers to try; 0 is the token embeddings; default: the embedder keeps its settings, and only the fusion
            is chosen.
        prompts: with layers, prompts to try, each before both queries and documents; default: no prompt.
        documents: number of documents sampled from each collection, truncated to 256 tokens.
        queries: number of queries sampled from each collection.
    """
    if not data:
        raise InputError("--data is empty; give at least one collection.")
    if prompts and not layers:
        raise InputError("--prompts needs --layers; without it, the embedder keeps its settings.")
    if not Path(out).absolute().parent.is_dir():  # checked before an hour of measuring
        raise InputError(f"{out} cannot be written: its folder does not exist; create the folder first.")
    encoder = Encoder.from_pretrained(embedder)
    collections = [_load(Path(path)).sample(queries, documents) for path in data]
    if too_high := [layer for layer in layers or [] if not 0 <= layer <= encoder.model.config.n_layer]:
        raise InputError(
            f"layer {too_high[0]} is not in the model; expected 0 to {encoder.model.config.n_layer}."
        )
    # Position-weighted pooling is not tried: below the top layer, tokens do not yet summarise the tokens before them,
    # and it only scores lower.
    poolings = [Pooling("mean", *rest) for rest in product(layers or [], (False, True), (False, True))]
    dense: dict[EmbedderConfig, Figures] = {}
    scores: dict[tuple[str, EmbedderConfig], Scores] = {}
    for collection in collections:
        tried = _dense_scores(encoder, collection, poolings, prompts or [""])
        for config, cosines in tried if layers else [_own_scores(encoder, collection)]:
            dense.setdefault(config, {})[collection.name] = _ndcg(collection, cosines)
            scores[collection.name, config] = cosines
    ranked = sorted(dense, key=lambda config: -_mean(dense[config]))
    _print_dense(ranked, dense)

    best = ranked[0]
    bm25 = {c.name: lexical_scores(c) for c in collections}
    hybrid = {
        fusion: {c.name: _ndcg(c, _fuse(fusion, scores[c.name, best], bm25[c.name])) for c in collections}
        for fusion in tqdm(FUSIONS, desc="fusing", disable=None)
    }
    _print_hybrid(hybrid, dense[best], {c.name: _ndcg(c, bm25[c.name]) for c in collections})
    fusion = max(FUSIONS, key=lambda fusion: _mean(hybrid[fusion]))
    atomic_write(out, replace(best, fusion=fusion).to_json())


def _load(path: Path) -> Collection:
    if not path.is_dir():
        return Collection.from_pairs(path)
    return Collection.load(path, "dev" if (path / "qrels" / "dev.tsv").is_file() else "train")


def _dense_scores(
    encoder: Encoder, collection: Collection, poolings: list[Pooling], prompts: list[str]
) -> Iterator[tuple[EmbedderConfig, Scores]]:
    """Yield each combination of settings with its cosines (Q, n) of queries and documents."""
    for prompt in prompts:
        documents = encode_all(encoder, [prompt + text for text in collection.texts], poolings)
        queries = encode_all(encoder, [prompt + text for text in collection.queries.values()], poolings)
        for pooling, kind in product(poolings, get_args(MapKind)):
            fitted = CorpusMap.fit(kind, documents[pooling])
            config = EmbedderConfig(pooling, prompt, prompt, corpus_map=kind)
            yield config, fitted.apply(queries[pooling]) @ fitted.apply(documents[pooling]).T


def _own_scores(encoder: Encoder, collection: Collection) -> tuple[EmbedderConfig, Scores]:
    """The embedder's own settings with its cosines (Q, n) of queries and documents."""
    documents = encoder.encode_document(collection.texts)
    queries = encoder.encode_query(list(collection.queries.values()))
    fitted = CorpusMap.fit(encoder.config.corpus_map, documents)
    return encoder.config, fitted.apply(queries) @ fitted.apply(documents).T


@torch.inference_mode()
def encode_all(encoder: Encoder, texts: list[str], poolings: Sequence[Pooling]) -> dict[Pooling, Vectors]:
    """Unit vectors (n, d) of `texts`, truncated to 256 tokens, for each pooling, with one forward pass per batch."""
    model, states = encoder.model, list[Tensor]()

    def keep(_module: nn.Module, _inputs: object, state: Tensor) -> None:
        states.append(state)

    vectors = {p: np.zeros((len(texts), encoder.dimension), np.float32) for p in poolings}
    top = max(p.layer or 0 for p in poolings)
    hooks = [module.register_forward_hook(keep) for module in (model.drop, *model.blocks[:top])]
    bar = tqdm(total=len(texts), unit=" texts", desc="encoding", disable=None)
    for places, ids, mask in encoder.batches(texts, 256):
        states.clear()
        model(ids, logits=False, layer=top)
        for p in poolings:
            vectors[p][places] = pool(states[p.layer or 0], ids, mask, p).cpu().numpy()
        bar.update(len(places))
    bar.close()
    for hook in hooks:
        hook.remove()
    return {p: unit_length(rows) for p, rows in vectors.items()}


def lexical_scores(collection: Collection) -> Scores:
    """BM25 scores (Q, n) float32 of the index's lexical retriever; 0 where no term of the query occurs."""
    place = {name: i for i, name in enumerate(collection.documents)}
    scores = np.zeros((len(collection.queries), len(place)), dtype=np.float32)
    with tempfile.TemporaryDirectory() as scratch, Index.create(Path(scratch, "index"), dimension=1) as index:
        index.add(collection.documents.values(), np.ones((len(place), 1)))
        for row, hits in zip(
            scores, index.search(list(collection.queries.values()), len(place), "lexical"), strict=True
        ):
            for hit in hits:
                row[place[hit.doc_id]] = hit.score
    return scores


def _fuse(fusion: Fusion, dense: Scores, lexical: Scores) -> Scores:
    pairs = zip(dense, lexical, strict=True)
    rows = [sum(part.shares for part in fuse(fusion, d, b, Spread.of(d), Spread.of(b))) for d, b in pairs]
    return np.array(rows, dtype=np.float32)


def _ndcg(collection: Collection, scores: Scores) -> float:
    places = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    return score(collection, collection.run(places, np.take_along_axis(scores, places, axis=1)))["nDCG@10"]


def _mean(figures: Figures) -> float:
    return float(np.mean(list(figures.values())))


def _print_dense(ranked: list[EmbedderConfig], dense: dict[EmbedderConfig, Figures]) -> None:
    """Print the ten best settings, then the best of each layer with each kind of corpus map."""
    names = list(dense[ranked[0]])
    print(f"nDCG@10 of dense search{'':<40}  mean  {'  '.join(f'{name[:12]:>12}' for name in names)}")
    shown = ranked[:10]
    different = {(c.corpus_map, c.pooling.layer or 0) for c in ranked} if len(ranked) > 10 else set()
    for kind, layer in sorted(different):
        same = (c for c in ranked if (c.corpus_map, c.pooling.layer) == (kind, layer))
        shown.append(next(same))
    for i, config in enumerate(shown):
        if i == 10:
            print("the best of each layer with each kind of corpus map")
        _print_line(_words(config), dense[config])


def _print_hybrid(hybrid: dict[Fusion, Figures], dense: Figures, bm25: Figures) -> None:
    """Print both retrievers and each fusion, with its largest loss against the better retriever."""
    print("\nnDCG@10 of hybrid search with the best settings")
    _print_line("the index's BM25 alone", bm25)
    _print_line("dense alone", dense)
    for fusion, figures in hybrid.items():
        weight = "" if fusion.kind == "rrf" else f" {fusion.dense_weight}"
        loss = max(max(dense[name], bm25[name]) - figures[name] for name in figures)
        _print_line(f"{fusion.kind}{weight}, at worst {loss:.3f} below the better retriever", figures)


def _words(config: EmbedderConfig) -> str:
    p = config.pooling
    parts = [f"layer {p.layer}", p.mode, "skip first" * p.skip_first, "unit tokens" * p.unit_tokens]
    parts += [repr(config.query_prompt) * bool(config.query_prompt), config.corpus_map]
    return ", ".join(part for part in parts if part)


def _print_line(words: str, figures: Figures) -> None:
    print(
        f"{words:<62}{_mean(figures):7.4f}  {'  '.join(f'{figure:12.3f}' for figure in figures.values())}",
        flush=True,
    )
