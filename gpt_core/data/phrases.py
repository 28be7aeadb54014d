"""Pairs of words that stand for one thing, such as "blood pressure", found by how often they occur together."""

import math
import re
from collections import Counter

# Two words of letters alone with one space between them. The second one is only looked at, because it may begin a pair.
PAIR = re.compile(r"(?<!\w)([^\W\d_]{2,24}) (?=([^\W\d_]{2,24})(?!\w))")
WORD = re.compile(r"(?<!\w)[^\W\d_]{2,24}(?!\w)")
N_COMMON = 100  # the most frequent words, such as "the" and "which", are in no phrase
LEAST_COUNT = 10


class PhraseCounter:
    """Counts words and pairs of neighbouring words.

    Memory grows with the number of distinct pairs.
    """

    def __init__(self) -> None:
        self.words: Counter[str] = Counter()
        self.pairs: Counter[tuple[str, str]] = Counter()

    def add(self, text: str) -> None:
        """Count the words and pairs of a text, which is normalised as the tokenizer will normalise it."""
        self.words.update(WORD.findall(text))
        self.pairs.update(PAIR.findall(text))

    def best(self, n: int) -> list[str]:
        """The `n` pairs with the greatest frequency times pointwise mutual information, greatest first.

        That product is what knowing the pair saves in bits over knowing the words alone (Church and Hanks 1990).

        Args:
            n: number of phrases; fewer are returned if not enough pairs occur `LEAST_COUNT` times and more often
                together than by chance.
        """
        total = sum(self.words.values())
        common = {word for word, _ in self.words.most_common(N_COMMON)}
        saved = {}
        for (first, second), count in self.pairs.items():
            if count < LEAST_COUNT or first in common or second in common:
                continue
            information = math.log(count * total / (self.words[first] * self.words[second]))
            if information > 0:
                saved[f"{first} {second}"] = count * information
        return sorted(saved, key=lambda phrase: (-saved[phrase], phrase))[:n]
