"""Texts of the training data that nearly equal texts of an evaluation set, which would flatter its score."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embed.data.beir import is_beir, read_corpus, read_queries
from embed.data.pairs import Example, read_examples
from embed.text.terms import words
from gpt_core.common.errors import InputError

GRAM = 8  # words, as PaLM (Chowdhery et al. 2022) looked for its evaluation sets in its training text
MIN_OVERLAP = 0.5  # a word changed in every sixteen leaves half of the runs whole
CHUNK = 1024  # training texts at once

Hashes = NDArray[np.uint64]
Numbers = NDArray[np.int64]


def near_duplicates(
    train_texts: Iterable[str], eval_texts: Sequence[str], min_overlap: float = MIN_OVERLAP
) -> list[tuple[int, int, float]]:
    """Pairs of texts that share many runs of `GRAM` words, or are the same but for case and punctuation.

    The overlap is the number of different runs that both texts have, over that of the text which has fewer: so a
    passage is found in the document that it was cut from. A text shorter than a run counts as one, and is only found
    where it is the whole other text. A Chinese character is a word.

    Args:
        train_texts: any number; they are read once.
        eval_texts: to look for.
        min_overlap: the least to report.

    Returns:
        (number of the training text, number of the evaluation text, overlap), in this order. The figures are exact:
        hashes only find what to compare.
    """
    owners, hashes = _hashed(eval_texts)
    order = np.argsort(hashes, kind="stable")
    owners, hashes = owners[order], hashes[order]
    n_runs = np.bincount(owners, minlength=len(eval_texts))
    found: list[tuple[int, int, float]] = []
    texts, done = iter(train_texts), 0
    while chunk := list(islice(texts, CHUNK)):
        for train, text, shared, n in _matches(chunk, owners, hashes):
            if shared / min(n, n_runs[text]) < min_overlap:
                continue
            ours, theirs = _runs(chunk[train]), _runs(eval_texts[text])
            overlap = len(ours & theirs) / min(len(ours), len(theirs))
            if overlap >= min_overlap:
                found.append((done + train, text, overlap))
        done += len(chunk)
    return found


def without_near_duplicates(
    name: str, examples: Sequence[Example], sources: Iterable[str | Path]
) -> list[Example]:
    """The examples of which no text nearly equals one of an evaluation set; a line on stderr counts the others.

    Args:
        name: what messages call the examples.
        examples: to choose from.
        sources: BEIR folders (all queries and documents count), and what `read_examples` reads.

    Raises:
        InputError: for a source that cannot be read, or if no example is left.
    """
    sources = list(sources)
    eval_texts = list(dict.fromkeys(chain.from_iterable(map(read_texts, sources))))
    texts = list(dict.fromkeys(text for example in examples for text in example.texts))
    found = {texts[train]: eval_texts[text] for train, text, _ in near_duplicates(texts, eval_texts)}
    kept = [example for example in examples if not any(text in found for text in example.texts)]
    if len(kept) < len(examples):
        first = next(text for example in examples for text in example.texts if text in found)
        print(
            f"{name}: {len(examples) - len(kept):,} of {len(examples):,} examples left out, of which a text nearly "
            f"equals one of {', '.join(map(str, sources))}; the first: {first[:60]!r}, there {found[first][:60]!r}",
            file=sys.stderr,
        )
    if not kept:
        raise InputError(
            f"{name}: all {len(examples):,} examples nearly equal texts of what is to be excluded; train on others."
        )
    return kept


def read_texts(source: str | Path) -> list[str]:
    """Every text of an evaluation set or of training data.

    Args:
        source: a BEIR folder, of which all queries and documents count, or what `read_examples` reads.

    Raises:
        InputError: for a source that cannot be read.
    """
    if is_beir(Path(source)):
        return [*read_corpus(source).values(), *read_queries(source).values()]
    return [text for example in read_examples(source) for text in example.texts]


def _matches(
    texts: Sequence[str], eval_owners: Numbers, eval_hashes: Hashes
) -> Iterator[tuple[int, int, int, int]]:
    """Of each pair that shares a run: the texts' numbers, how many runs they share, how many the first one has."""
    owners, hashes = _hashed(texts)
    n_runs = np.bincount(owners, minlength=len(texts))
    first = np.searchsorted(eval_hashes, hashes)
    counts = np.searchsorted(eval_hashes, hashes, side="right") - first
    # the places in `eval_hashes` of each run's matches, one after the other
    places = np.repeat(first - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
    n_eval = int(eval_owners.max(initial=0)) + 1
    pairs, shared = np.unique(np.repeat(owners, counts) * n_eval + eval_owners[places], return_counts=True)
    for pair, n in zip(pairs.tolist(), shared.tolist(), strict=True):
        train, text = divmod(pair, n_eval)
        yield train, text, n, int(n_runs[train])


def _hashed(texts: Sequence[str]) -> tuple[Numbers, Hashes]:
    """The different runs of each text as hashes, and the number of the text that each belongs to."""
    hashes = [np.unique(_hash_runs(words(text))) for text in texts]
    owners = np.repeat(np.arange(len(texts)), [len(h) for h in hashes])
    return owners, np.concatenate(hashes) if hashes else np.empty(0, dtype=np.uint64)


def _hash_runs(found: list[str]) -> Hashes:
    """A polynomial in the words' hashes, modulo 2^64, for each run."""
    of_words = np.fromiter(map(hash, found), dtype=np.int64, count=len(found)).view(np.uint64)
    n = min(GRAM, len(found))
    runs = np.zeros(max(len(found) - n + 1, 0) if n else 0, dtype=np.uint64)
    for start in range(n):
        runs = runs * np.uint64(0x9E3779B97F4A7C15) + of_words[start : start + len(runs)]
    return runs


def _runs(text: str) -> set[tuple[str, ...]]:
    found = words(text)
    n = min(GRAM, len(found))
    return {tuple(found[i : i + n]) for i in range(len(found) - n + 1)}
