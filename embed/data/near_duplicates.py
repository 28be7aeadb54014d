"""Near-duplicates between training data and evaluation sets: leakage, which inflates evaluation scores."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embed.data.beir import is_beir, read_corpus, read_queries
from embed.data.pairs import Example, read_examples
from embed.data.sentence_pairs import SentencePairs
from embed.text.analysis import words
from gpt_core.common.errors import InputError
from gpt_core.common.list_files import has_ending
from gpt_core.data.tables import CSV, TSV

NGRAM_WORDS = 8  # as in PaLM's leakage check (Chowdhery et al. 2022)
MIN_OVERLAP = 0.5  # one changed word in sixteen leaves half of the 8-grams unchanged
TEXTS_PER_CHUNK = 1024  # training texts that are hashed together

Hashes = NDArray[np.uint64]
Positions = NDArray[np.int64]


def near_duplicates(
    train_texts: Iterable[str], eval_texts: Sequence[str], min_overlap: float = MIN_OVERLAP
) -> list[tuple[int, int, float]]:
    """Pairs of texts that share many `NGRAM_WORDS`-grams of words, ignoring case and punctuation.

    The overlap of two texts is the number of common distinct n-grams, divided by the smaller of their numbers of
    distinct n-grams: so a passage matches the document that it was cut from. A text shorter than an n-gram is one
    n-gram, and matches only an equal text. A CJK character is a word.

    Args:
        train_texts: any number; iterated once.
        eval_texts: the evaluation texts to search for.
        min_overlap: smallest overlap to report, 0 to 1.

    Returns:
        (position of the training text, position of the evaluation text, overlap), sorted by training text. Overlaps are
        exact: hashes only select the pairs to compare.
    """
    owners, hashes, n_grams = _sorted_hashes(tuple(eval_texts))
    found: list[tuple[int, int, float]] = []
    texts, done = iter(train_texts), 0
    while chunk := list(islice(texts, TEXTS_PER_CHUNK)):
        for train, text, shared, n in _matches(chunk, owners, hashes):
            if shared / min(n, n_grams[text]) < min_overlap:
                continue
            ours, theirs = _ngrams(chunk[train]), _ngrams(eval_texts[text])
            overlap = len(ours & theirs) / min(len(ours), len(theirs))
            if overlap >= min_overlap:
                found.append((done + train, text, overlap))
        done += len(chunk)
    return found


def without_near_duplicates(
    name: str, examples: Sequence[Example], sources: Iterable[str | Path]
) -> list[Example]:
    """The examples without a near-duplicate of an evaluation text; prints the number of removed examples to stderr.

    Args:
        name: name of the examples in messages.
        examples: the examples to filter.
        sources: evaluation sets: BEIR folders (all queries and documents), or sources that `read_examples` accepts.

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
            f"{name}: {len(examples) - len(kept):,} of {len(examples):,} examples removed as near-duplicates of texts "
            f"in {', '.join(map(str, sources))}; the first: {first[:60]!r}, evaluation text {found[first][:60]!r}",
            file=sys.stderr,
        )
    if not kept:
        raise InputError(
            f"{name}: all {len(examples):,} examples are near-duplicates of excluded texts; train on other data."
        )
    return kept


def read_texts(source: str | Path) -> list[str]:
    """Every text of an evaluation set or of training data.

    Args:
        source: a BEIR folder (all its queries and documents), a .csv or .tsv file of sentence pairs, or a source that
            `read_examples` accepts.

    Raises:
        InputError: for a source that cannot be read.
    """
    if is_beir(Path(source)):
        return [*read_corpus(source).values(), *read_queries(source).values()]
    if has_ending(Path(source), CSV + TSV):
        return SentencePairs.load(source).texts
    return [text for example in read_examples(source) for text in example.texts]


def _matches(
    texts: Sequence[str], eval_owners: Positions, eval_hashes: Hashes
) -> Iterator[tuple[int, int, int, int]]:
    """For each pair with a common n-gram: both texts' positions, number of common n-grams, n-grams of the first."""
    owners, hashes = _hashed(texts)
    n_grams = np.bincount(owners, minlength=len(texts))
    first = np.searchsorted(eval_hashes, hashes)
    counts = np.searchsorted(eval_hashes, hashes, side="right") - first
    # Positions in `eval_hashes` of the matches of each n-gram, concatenated.
    positions = np.repeat(first - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
    n_eval = int(eval_owners.max(initial=0)) + 1
    pairs, shared = np.unique(np.repeat(owners, counts) * n_eval + eval_owners[positions], return_counts=True)
    for pair, n in zip(pairs.tolist(), shared.tolist(), strict=True):
        train, text = divmod(pair, n_eval)
        yield train, text, n, int(n_grams[train])


@lru_cache(maxsize=1)  # several files are compared with the same evaluation texts
def _sorted_hashes(texts: tuple[str, ...]) -> tuple[Positions, Hashes, Positions]:
    """`_hashed`, sorted by hash, and each text's number of distinct n-grams."""
    owners, hashes = _hashed(texts)
    order = np.argsort(hashes, kind="stable")
    return owners[order], hashes[order], np.bincount(owners, minlength=len(texts))


def _hashed(texts: Sequence[str]) -> tuple[Positions, Hashes]:
    """Position of the text of each n-gram, and the hashes of each text's distinct n-grams; both of length N."""
    hashes = [np.unique(_hash_ngrams(words(text))) for text in texts]
    owners = np.repeat(np.arange(len(texts)), [len(h) for h in hashes])
    return owners, np.concatenate(hashes) if hashes else np.empty(0, dtype=np.uint64)


def _hash_ngrams(found: list[str]) -> Hashes:
    """A polynomial in the words' hashes, modulo 2^64, for each n-gram."""
    word_hashes = np.fromiter(map(hash, found), dtype=np.int64, count=len(found)).view(np.uint64)
    n = min(NGRAM_WORDS, len(found))
    ngrams = np.zeros(max(len(found) - n + 1, 0) if n else 0, dtype=np.uint64)
    for start in range(n):
        ngrams = ngrams * np.uint64(0x9E3779B97F4A7C15) + word_hashes[start : start + len(ngrams)]
    return ngrams


def _ngrams(text: str) -> set[tuple[str, ...]]:
    found = words(text)
    n = min(NGRAM_WORDS, len(found))
    return {tuple(found[i : i + n]) for i in range(len(found) - n + 1)}
