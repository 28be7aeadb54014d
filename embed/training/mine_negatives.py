"""Mining of hard negatives: texts that a retriever ranks high for a query, but that are not its positives."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from embed.data.beir import is_beir, read_corpus
from embed.data.bm25 import BM25
from embed.data.pairs import Columns, Example, read_examples
from embed.encoding.contenders import contenders, variants
from embed.text.key import text_key
from gpt_core.common.errors import InputError
from gpt_core.common.files import atomic_open
from gpt_core.formats.huggingface.config import FAMILIES
from gpt_core.hardware.device import DeviceName
from gpt_core.hub.locate import gguf_in, resolve

SCORES_PER_BLOCK = 2**24  # scores (queries times texts) in memory at a time: 64 MiB

Sampling = Literal["top", "random"]


@dataclass(frozen=True)
class Scorer:
    """Scores of all texts for all queries.

    Attributes:
        scores: (start, stop) → scores (stop - start, n) of all texts for these queries.
        above: texts with a score of at most this are not candidates.
    """

    scores: Callable[[int, int], Tensor]
    above: float = -torch.inf


@dataclass(frozen=True)
class Window:
    """Selection of negatives among candidates, with the rules of sentence-transformers' `mine_hard_negatives`.

    Attributes:
        negatives: maximum number of negatives per query.
        rank_min: number of best candidates, after the margin, to skip: they may be unlabelled positives.
        rank_max: number of best texts that are candidates, not counting the query's positives.
        relative_margin: a negative's score must be at most p - margin · |p|, where p is the lowest score of the query's
            positives (NV-Retriever's TopK-PercPos, Moreira et al. 2024; with |p|, because a fraction of a negative p
            would raise the limit). None: no limit.
        sampling: "top" selects the best candidates, "random" a random sample.
        seed: seed of "random".
    """

    negatives: int = 5
    rank_min: int = 0
    rank_max: int = 100
    relative_margin: float | None = 0.05
    sampling: Sampling = "top"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.negatives < 1:
            raise InputError(f"negatives is {self.negatives}; expected at least 1.")
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}; expected at least 0.")
        if not 0 <= self.rank_min <= self.rank_max - self.negatives:
            raise InputError(
                f"rank_min is {self.rank_min} and rank_max {self.rank_max}; expected {self.negatives} ranks or more "
                "between them, one for each negative."
            )
        if self.relative_margin is not None and not 0 <= self.relative_margin <= 1:
            raise InputError(
                f"relative_margin is {self.relative_margin}; expected a fraction from 0 to 1, or None."
            )


@dataclass(frozen=True)
class Mined:
    """Negatives of one query.

    Attributes:
        places: positions of the negatives in the corpus, hardest first.
        scores: scores of the negatives.
        positive: the lowest score of the query's positives.
        n_rejected: number of candidates rejected by the margin.
    """

    places: list[int]
    scores: list[float]
    positive: float
    n_rejected: int


def mine_negatives(
    *,
    data: str,
    out: Path,
    split: str = "train",
    corpus: str | None = None,
    by: str = "bm25",
    guide: str | None = None,
    negatives: int = 5,
    rank_min: int = 0,
    rank_max: int = 100,
    relative_margin: float | None = 0.05,
    sampling: Sampling = "top",
    seed: int = 0,
    max_tokens: int = 256,
    device: DeviceName = "auto",
    query_column: str | None = None,
    positive_column: str | None = None,
) -> None:
    """Add hard negatives to training data: texts that rank high for a query but are not its positives.

    Writes JSON lines of {"query", "pos", "neg"}, one per example, for train_embedder. Existing negatives are kept,
    before the mined ones. Examples with equal queries share their positives.

    Args:
        data: JSON lines of pairs, a BEIR folder, or a dataset of the library datasets.
        out: the output file, a .jsonl.
        split: split of a BEIR folder or dataset.
        corpus: source of negatives: a BEIR folder, or data in the other forms, of which all positives and texts are
            used; if not given, the corpus of data if it is a BEIR folder, else the positives of data.
        by: the retriever: bm25, or a model whose cosines rank the texts: a known name, a model folder, a run's out_dir.
        guide: a model that rescores the candidates; if not given, the scores of `by` are used. A guide helps BM25,
            which scores a positive without a word of its query 0, so that the query gets no negatives.
        negatives: maximum number of negatives per query.
        rank_min: number of best candidates to skip, which may be unlabelled positives.
        rank_max: lowest rank of a candidate.
        relative_margin: minimum distance of a negative's score below the positive's, as a fraction of the positive's.
        sampling: select the best candidates, or a random sample of them.
        seed: seed of random sampling.
        max_tokens: longest text in each model's own tokens.
        device: device of the models.
        query_column: name of the query column, if it is not query or anchor.
        positive_column: name of the positive column, if it is not positive or pos.

    Raises:
        InputError: for data or a model that cannot be read, an existing output file, or fewer ranks than negatives.
    """
    window = Window(negatives, rank_min, rank_max, relative_margin, sampling, seed)
    if out.suffix != ".jsonl":
        raise InputError(f"{out} is not the name of a .jsonl file; give --out a name that ends in .jsonl.")
    if out.exists():
        raise InputError(f"{out} already exists; remove it or give another --out.")
    if not out.parent.is_dir():
        raise InputError(f"{out.parent} is not a folder; create it, or give another --out.")
    if max_tokens < 1:
        raise InputError(f"max_tokens is {max_tokens}; expected at least 1.")
    examples = read_examples(data, split, Columns(query_column, positive_column))
    if not all(example.positives for example in examples):
        raise InputError(
            f"{data} has texts without a positive; expected pairs, as mining needs a positive for each query."
        )
    texts = _corpus(data if corpus is None and is_beir(Path(data)) else corpus, examples)
    queries = _distinct(example.query for example in examples)
    positives = _positives(examples, texts)
    rank = _scorer(by, queries, texts, max_tokens, device)
    judge = _scorer(guide, queries, texts, max_tokens, device) if guide else None
    found = search_negatives(rank, judge, queries, texts, positives, window)
    mined = dict(zip(map(text_key, queries), found, strict=True))
    with atomic_open(out) as file:
        for example in examples:
            more = (texts[place] for place in mined[text_key(example.query)].places)
            neg = _distinct([*example.negatives, *more])
            row = {"query": example.query, "pos": list(example.positives), "neg": neg}
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    _report(list(mined.values()), window, len(texts), out)


def search_negatives(
    rank: Scorer,
    judge: Scorer | None,
    queries: Sequence[str],
    texts: Sequence[str],
    positives: Sequence[Sequence[int]],
    window: Window,
) -> Iterator[Mined]:
    """Mine negatives of each query among `texts`; its positives and texts equal to the query are excluded.

    Args:
        rank: selects the candidates.
        judge: rescores the candidates and positives; None: `rank`.
        queries: distinct queries.
        texts: distinct texts.
        positives: for each query, the positions of its positives in `texts`.
        window: selects negatives among the candidates.
    """
    place_of = {text_key(text): place for place, text in enumerate(texts)}
    block = max(1, SCORES_PER_BLOCK // len(texts))
    for start in tqdm(range(0, len(queries), block), desc="mining", unit=" blocks", disable=None):
        stop = min(start + block, len(queries))
        scores = rank.scores(start, stop)
        judged = scores.clone() if judge is None else judge.scores(start, stop)
        for i in range(start, stop):
            own = place_of.get(text_key(queries[i]))
            scores[i - start, [*positives[i], *([] if own is None else [own])]] = -torch.inf
        best, places = scores.topk(min(window.rank_max, len(texts)), dim=1)
        judged_best = judged.gather(1, places)
        for i in range(start, stop):
            row = best[i - start] > rank.above
            lowest = judged[i - start, list(positives[i])].min().item()
            yield choose(places[i - start][row], judged_best[i - start][row], lowest, window, i)


def choose(places: Tensor, scores: Tensor, positive: float, window: Window, number: int = 0) -> Mined:
    """Select a query's negatives among its candidates.

    Args:
        places: (k,) positions of the candidates in the corpus.
        scores: (k,) scores of the candidates, in any order.
        positive: the lowest score of the query's positives.
        window: the rules; `rank_max` has already been applied.
        number: position of the query; part of the random seed, so that samples of different queries differ.
    """
    scores, order = scores.sort(descending=True, stable=True)
    places = places[order]
    kept = torch.ones(len(scores), dtype=torch.bool)
    if window.relative_margin is not None:
        kept = scores <= positive - abs(positive) * window.relative_margin
    left, left_scores = places[kept][window.rank_min :], scores[kept][window.rank_min :]
    taken = np.arange(min(window.negatives, len(left)))
    if window.sampling == "random":
        rng = np.random.default_rng((window.seed, number))
        taken = np.sort(rng.choice(len(left), len(taken), replace=False))
    return Mined(left[taken].tolist(), left_scores[taken].tolist(), positive, len(scores) - int(kept.sum()))


def _distinct(texts: Iterable[str]) -> list[str]:
    """The first text of each `text_key`, without blank texts."""
    different: dict[str, str] = {}
    for text in texts:
        different.setdefault(text_key(text), text)
    different.pop("", None)
    return list(different.values())


def _corpus(source: str | None, examples: Sequence[Example]) -> list[str]:
    """Distinct texts: those of `source`, and all positives."""
    texts: list[str] = []
    if source is not None and is_beir(Path(source)):
        texts += read_corpus(source).values()
    elif source is not None:
        for example in read_examples(source):
            texts += example.positives or [example.query]
    for example in examples:
        texts += example.positives
    return _distinct(texts)


def _positives(examples: Sequence[Example], texts: Sequence[str]) -> list[list[int]]:
    """Positions in `texts` of the positives of each distinct query."""
    place_of = {text_key(text): place for place, text in enumerate(texts)}
    found: dict[str, dict[int, None]] = {}
    for example in examples:
        places = found.setdefault(text_key(example.query), {})
        places |= {place_of[text_key(positive)]: None for positive in example.positives}
    return [list(places) for places in found.values()]


def _scorer(
    name: str, queries: Sequence[str], texts: Sequence[str], max_tokens: int, device: DeviceName
) -> Scorer:
    if name == "bm25":
        ranker = BM25(texts)

        return Scorer(lambda start, stop: torch.from_numpy(ranker.scores(queries[start:stop])), above=0)
    kind: Literal["dense", "baseline"] = "dense" if _is_gpt(resolve(name)) else "baseline"
    (model,) = contenders(
        [kind], embedder=name, base=None, baseline=name, max_tokens=max_tokens, device=device
    )
    vectors = model.encode(queries, "query"), model.encode(texts, "document")
    searched = next(variants(model, *vectors, rows=(), dims=()))
    ours, theirs = torch.from_numpy(searched.queries), torch.from_numpy(searched.stored)
    return Scorer(lambda start, stop: ours[start:stop] @ theirs.T)


def _is_gpt(folder: Path) -> bool:
    config = folder / "config.json"
    if not config.is_file():
        return gguf_in(folder) is not None
    try:
        # Models of other types are opened by sentence-transformers.
        return json.loads(config.read_text(encoding="utf-8"))["model_type"] in FAMILIES
    except (ValueError, KeyError, TypeError):
        return True  # loading it as a GPT raises an error that describes the defect


def _report(mined: Sequence[Mined], window: Window, n_texts: int, out: Path) -> None:
    found = sum(len(one.places) for one in mined)
    few = [one for one in mined if len(one.places) < window.negatives]
    none = sum(not one.places for one in few)
    print(f"{out}: {found:,} negatives for {len(mined):,} distinct queries, from {n_texts:,} texts")
    if found:
        positive = np.mean([one.positive for one in mined])
        negative = np.mean([score for one in mined for score in one.scores])
        print(f"mean score: positives {positive:.3f}, negatives {negative:.3f}")
    if window.relative_margin is not None:
        rejected = sum(one.n_rejected for one in mined)
        print(f"{rejected:,} candidates rejected by the relative margin of {window.relative_margin}")
    if few:
        print(
            f"{len(few):,} queries have fewer than {window.negatives} negatives, {none:,} of them have none"
        )
