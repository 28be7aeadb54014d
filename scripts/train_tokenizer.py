"""Text → a byte-level BPE tokenizer."""

import zhizhi._quiet  # first: Ctrl-C during the imports below

from gpt_core.common.cli import open_door
from gpt_core.data.train_tokenizer import train_tokenizer


def main() -> None:
    open_door(train_tokenizer)


if __name__ == "__main__":
    main()
