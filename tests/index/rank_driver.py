"""One of two ranks: encodes blocks of texts with an embedder that refuses a text; rank 0 prints what it got.

    rank_driver.py EMBEDDER

The line has the greatest difference from vectors that one process computes, the numbers of truncated texts, and the
error for a block that another rank refuses.
"""

import sys

import numpy as np

from embed.encoding.encoder import Encoder
from embed.encoding.rank_runner import rank_runner
from embed.encoding.runner import Here
from gpt_core.common.errors import InputError
from gpt_core.training.parallel.ranks import end_at_once

BLOCKS = [["one", "two " * 200], ["three"], ["four", "five " * 300, "six"], ["seven"], ["eight"]]


class Refusing(Encoder):
    """An encoder that refuses a text."""

    def encode_document(self, texts, **options):
        if "refused" in texts:
            raise InputError("The text is refused.")
        return super().encode_document(texts, **options)


def main() -> None:
    with rank_runner() as runner:
        if runner is None:
            return
        encoder = Refusing.from_pretrained(sys.argv[1])
        encoded = runner.encode(encoder, BLOCKS)
        try:
            runner.encode(encoder, [["nine"], ["refused"]])
            error = ""
        except InputError as raised:
            error = str(raised)
        again = runner.encode(encoder, BLOCKS[:1])  # the ranks go on after an error
        here = Here().encode(encoder, [*BLOCKS, BLOCKS[0]])
        difference = max(
            np.abs(one.vectors - other.vectors).max()
            for one, other in zip([*encoded, *again], here, strict=True)
        )
        print(difference, [one.n_truncated for one in encoded], error)


if __name__ == "__main__":
    with end_at_once():
        main()
