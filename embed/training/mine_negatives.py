"""Hard negatives: texts that a search takes for answers to a query, but that are not its positives."""

import json
from collections.abc import Callable, Iterator, Sequence
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
from gpt_core.common.errors import InputError
from gpt_core.common.files import atomic_open
from gpt_core.formats.huggingface.config import FAMILIES
from gpt_core.hardware.device import DeviceName
from gpt_core.hub.locate import gguf_in, resolve

BLOCK_SCORES = 2**24  # queries times texts that are scored at once: 64 MiB

Sampling = Literal["top", "random"]


@dataclass(frozen=True)
class Scorer:
    """What ranks texts.

    Attributes:
        scores: those (stop - start, n) of all texts for the queries from start to stop.
        above: a text that scores no more than this was not found.
    """

    scores: Callable[[int, int], Tensor]
    above: float = -torch.inf


@dataclass(frozen=True)
class Window:
    """Which candidates become negatives; sentence-transformers' `mine_hard_negatives` has the same rules.

    Attributes:
        negatives: how many at most for a query.
        rank_min: so many of the best that the margin leaves are passed over: they may be unlabelled positives.
        rank_max: only the best so many are candidates at all; the query's own positives are not counted.
        relative_margin: a candidate's score must be below its query's positive's by this share of the latter's size:
            at most p - margin · |p| (NV-Retriever's TopK-PercPos, Moreira et al. 2024; the size, since a share of a
            negative score would raise the bar). Of several positives the lowest counts. None: any score will do.
        sampling: "top" takes the best, "random" any of the window.
        seed: of the latter.
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
                "from one to the other, so that there can be as many negatives."
            )
        if self.relative_margin is not None and not 0 <= self.relative_margin <= 1:
            raise InputError(
                f"relative_margin is {self.relative_margin}; expected a share from 0 to 1, or None."
            )


@dataclass(frozen=True)
class Mined:
    """What was found for one query.

    Attributes:
        places: of its negatives, hardest first.
        scores: theirs.
        positive: the lowest score of its positives.
        n_rejected: candidates that the margin left out.
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
    """Give training data hard negatives: texts that rank high for a query without being its positives.

    Writes JSON lines of {"query", "pos", "neg"}, a line for each example, which train_embedder takes; negatives that
    the data had stay, before the mined ones. Queries that equal each other share their positives.

    Args:
        data: JSON lines of pairs, a BEIR folder, or a set of the library datasets.
        out: the file to write, a .jsonl.
        split: of a BEIR folder or a set.
        corpus: where negatives come from: a BEIR folder, or anything that `data` can be, of which all positives and
            texts count; None for the data's own positives, or its own corpus if it is a BEIR folder.
        by: bm25, or the model whose cosines rank the texts: a known name, a model folder, a run's out_dir.
        guide: a model that ranks and judges the candidates anew; without it the scores of `by` do. BM25 scores
            a positive that shares no word with its query 0, so such a query gets no negatives: a guide helps.
        negatives: how many for each query, at most.
        rank_min: pass so many of the best over, which may be positives that nobody labelled.
        rank_max: take none beyond this rank.
        relative_margin: how far below the positive a negative must score, as a share of the positive's score.
        sampling: take the best of the ranks, or any of them.
        seed: of random sampling.
        max_tokens: longest text in each model's own tokens.
        device: where models compute.
        query_column: name of the column, if it is not a usual one.
        positive_column: likewise.

    Raises:
        InputError: for data or a model that cannot be read, or a window without room for the negatives.
    """
    window = Window(negatives, rank_min, rank_max, relative_margin, sampling, seed)
    if out.suffix != ".jsonl":
        raise InputError(f"{out} is not the name of a .jsonl file, which is what is written; name --out so.")
    if out.exists():
        raise InputError(f"{out} is there already; remove it or give another --out.")
    if not out.parent.is_dir():
        raise InputError(f"{out.parent} is no folder; make it, or give another --out.")
    if max_tokens < 1:
        raise InputError(f"max_tokens is {max_tokens}; expected at least 1.")
    examples = read_examples(data, split, Columns(query_column, positive_column))
    if not all(example.positives for example in examples):
        raise InputError(
            f"{data} has texts without a positive; expected pairs, whose negatives can be mined."
        )
    texts = _corpus(data if corpus is None and is_beir(Path(data)) else corpus, examples)
    queries = list(dict.fromkeys(example.query for example in examples))
    positives = _positives(examples, queries, texts)
    rank = _scorer(by, queries, texts, max_tokens, device)
    judge = _scorer(guide, queries, texts, max_tokens, device) if guide else None
    mined = dict(zip(queries, search_negatives(rank, judge, queries, texts, positives, window), strict=True))
    with atomic_open(out) as file:
        for example in examples:
            given = dict.fromkeys(example.negatives)
            given |= dict.fromkeys(texts[place] for place in mined[example.query].places)
            row = {"query": example.query, "pos": list(example.positives), "neg": list(given)}
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
    """The negatives of each query, among `texts`, that are neither its positives nor equal to the query.

    Args:
        rank: makes the candidates.
        judge: orders them anew and says how near the positive they are; None for `rank` itself.
        queries: all different.
        texts: all different.
        positives: for each query, the places of its positives in `texts`.
        window: which candidates to take.
    """
    place_of = {text.strip(): place for place, text in enumerate(texts)}
    block = max(1, BLOCK_SCORES // len(texts))
    for start in tqdm(range(0, len(queries), block), desc="mining", unit=" blocks", disable=None):
        stop = min(start + block, len(queries))
        scores = rank.scores(start, stop)
        judged = scores.clone() if judge is None else judge.scores(start, stop)
        for i in range(start, stop):
            own = place_of.get(queries[i].strip())
            scores[i - start, [*positives[i], *([] if own is None else [own])]] = -torch.inf
        best, places = scores.topk(min(window.rank_max, len(texts)), dim=1)
        judged_best = judged.gather(1, places)
        for i in range(start, stop):
            row = best[i - start] > rank.above
            lowest = judged[i - start, list(positives[i])].min().item()
            yield choose(places[i - start][row], judged_best[i - start][row], lowest, window, i)


def choose(places: Tensor, scores: Tensor, positive: float, window: Window, number: int = 0) -> Mined:
    """Which of a query's candidates become its negatives.

    Args:
        places: (k,) of the candidates.
        scores: (k,) theirs, in any order.
        positive: the lowest score of the query's positives.
        window: the rules; its ranks from `rank_max` on have been left out.
        number: the query's, so that random choices of different queries differ.
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


def _corpus(source: str | None, examples: Sequence[Example]) -> list[str]:
    """Different texts (save for white space around them): those of `source`, and all positives."""
    texts: list[str] = []
    if source is not None and is_beir(Path(source)):
        texts += read_corpus(source).values()
    elif source is not None:
        for example in read_examples(source):
            texts += example.positives or [example.query]
    for example in examples:
        texts += example.positives
    different: dict[str, str] = {}
    for text in texts:
        different.setdefault(text.strip(), text)
    different.pop("", None)
    return list(different.values())


def _positives(examples: Sequence[Example], queries: Sequence[str], texts: Sequence[str]) -> list[list[int]]:
    place_of = {text.strip(): place for place, text in enumerate(texts)}
    found: dict[str, dict[int, None]] = {query: {} for query in queries}
    for example in examples:
        found[example.query] |= {place_of[positive.strip()]: None for positive in example.positives}
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
    searched = next(variants(model, *vectors, dims=[], int8=False))
    ours, theirs = torch.from_numpy(searched.queries), torch.from_numpy(searched.stored)
    return Scorer(lambda start, stop: ours[start:stop] @ theirs.T)


def _is_gpt(folder: Path) -> bool:
    config = folder / "config.json"
    if not config.is_file():
        return gguf_in(folder) is not None
    try:
        return (
            json.loads(config.read_text(encoding="utf-8"))["model_type"] in FAMILIES
        )  # others are sentence-transformers'
    except (ValueError, KeyError, TypeError):
        return True  # our reader of such files says what is wrong with it


def _report(mined: Sequence[Mined], window: Window, n_texts: int, out: Path) -> None:
    found = sum(len(one.places) for one in mined)
    few = [one for one in mined if len(one.places) < window.negatives]
    none = sum(not one.places for one in few)
    print(f"{out}: {found:,} negatives for {len(mined):,} different queries, of {n_texts:,} texts")
    if found:
        positive = np.mean([one.positive for one in mined])
        negative = np.mean([score for one in mined for score in one.scores])
        print(f"mean score: positives {positive:.3f}, negatives {negative:.3f}")
    if window.relative_margin is not None:
        rejected = sum(one.n_rejected for one in mined)
        print(
            f"{rejected:,} candidates were too near their positive (relative margin {window.relative_margin})"
        )
    if few:
        print(f"{len(few):,} queries have fewer than {window.negatives} negatives, {none:,} of them none")
