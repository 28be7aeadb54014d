"""Text → a byte-level BPE tokenizer."""

import zhizhi._quiet  # first: Ctrl-C during the imports below

from gpt_core.common.cli import run_command
from gpt_core.data.train_tokenizer import train_tokenizer


def main() -> None:
    run_command(train_tokenizer)


if __name__ == "__main__":
    main()
