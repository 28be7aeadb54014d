"""Check for leakage of evaluation texts into training data."""

import sys
from collections.abc import Sequence

from embed.data.near_duplicates import near_duplicates
from embed.data.pairs import read_examples


def training_texts(sources: Sequence[str]) -> list[str]:
    """All distinct texts of training data, read by `embed.data.pairs.read_examples`."""
    return list(
        dict.fromkeys(
            text for source in sources for example in read_examples(source) for text in example.texts
        )
    )


def count_seen(what: str, texts: Sequence[str], training: Sequence[str]) -> int:
    """The number of evaluation texts that have near-duplicates in the training data; a positive number is printed.

    Args:
        what: description of `texts` in the message on stderr.
        texts: evaluation texts.
        training: training texts.
    """
    found = sorted({place for _, place, _ in near_duplicates(training, texts)})
    if found:
        print(
            f"leakage: {len(found)} of {len(texts)} {what} have near-duplicates in the training data, such as "
            f"{texts[found[0]][:80]!r}",
            file=sys.stderr,
        )
    return len(found)
