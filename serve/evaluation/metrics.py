"""Figures of answers: SQuAD's exact match and F1, AUROC, coverage at a precision."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import regex
from numpy.typing import NDArray

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = regex.compile(r"[\p{P}$+<=>^`|~]")  # Python's `string.punctuation`, and that of other scripts
_CHARACTER_OR_WORD = regex.compile(r"\p{Han}|[^\s\p{Han}]+")


def normal_words(text: str) -> list[str]:
    """The words of an answer as SQuAD 1.1 compares them; Chinese characters are a word each, as in CMRC 2018."""
    return _CHARACTER_OR_WORD.findall(_ARTICLES.sub(" ", _PUNCTUATION.sub("", text.lower())))


def exact_match(text: str, answers: Sequence[str]) -> float:
    """1 if the text equals one of the answers, else 0."""
    return float(any(normal_words(text) == normal_words(answer) for answer in answers))


def f1(text: str, answers: Sequence[str]) -> float:
    """The best F1 of the text's words and an answer's, counted with repetitions."""
    return max((_f1(normal_words(text), normal_words(answer)) for answer in answers), default=0.0)


def _f1(words: Sequence[str], answer: Sequence[str]) -> float:
    same = (Counter(words) & Counter(answer)).total()
    return 2 * same / (len(words) + len(answer)) if same else 0.0


def auroc(scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> float:
    """Area under the ROC curve: the probability that a positive scores above a negative; equal scores count half."""
    n_positive, n_negative = int(labels.sum()), int((~labels).sum())
    if not n_positive or not n_negative:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # from 1; equal scores share their mean rank
    return float((ranks[labels].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def precisions(scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(n,) the share of right ones among the 1, 2, …, n items with the highest scores."""
    return np.cumsum(labels[np.argsort(-scores, kind="stable")]) / np.arange(1, len(labels) + 1)


def coverage(scores: NDArray[np.float64], labels: NDArray[np.bool_], precision: float) -> tuple[float, float]:
    """The largest share of items with the highest scores of which at least `precision` are right, and its threshold.

    The threshold is 1 if there is no such share.
    """
    enough = np.flatnonzero(precisions(scores, labels) >= precision)
    if not len(enough):
        return 0.0, 1.0
    return float((enough[-1] + 1) / len(labels)), float(np.sort(scores)[::-1][enough[-1]])
