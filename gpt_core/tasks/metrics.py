"""Figures of predictions: accuracy, correlations, and SQuAD's exact match and F1."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import regex

from gpt_core.common.extras import extra

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


def correlations(predictions: Sequence[float], scores: Sequence[float]) -> dict[str, float]:
    """Pearson's and Spearman's correlation, by scipy; 0 if one side does not vary.

    Raises:
        InputError: if scipy is not installed.
    """
    with extra("train"):
        from scipy.stats import pearsonr, spearmanr
    if np.ptp(predictions) == 0 or np.ptp(scores) == 0:
        return {"Pearson": 0.0, "Spearman": 0.0}
    found = {"Pearson": pearsonr(predictions, scores), "Spearman": spearmanr(predictions, scores)}
    return {name: float(result.statistic) for name, result in found.items()}
