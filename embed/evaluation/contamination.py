"""Whether an evaluation's texts were in the training."""

import sys
from collections.abc import Sequence

from embed.data.near_duplicates import near_duplicates
from embed.data.pairs import read_examples


def training_texts(sources: Sequence[str]) -> list[str]:
    """All different texts of training data, as `embed.data.pairs.read_examples` reads them."""
    return list(
        dict.fromkeys(
            text for source in sources for example in read_examples(source) for text in example.texts
        )
    )


def count_seen(what: str, texts: Sequence[str], training: Sequence[str]) -> int:
    """How many of an evaluation's `texts`, called `what`, training texts hold or nearly hold; said on stderr."""
    found = sorted({place for _, place, _ in near_duplicates(training, texts)})
    if found:
        print(
            f"{len(found)} of {len(texts)} {what} are in the training data or nearly so, such as "
            f"{texts[found[0]][:80]!r}",
            file=sys.stderr,
        )
    return len(found)
