"""Prepare training pairs: from files of pairs and of documents, without duplicates and leakage."""

import zhizhi._quiet  # first: Ctrl-C during the imports below

from embed.data.prepare_pairs import prepare_pairs
from gpt_core.common.cli import run_command


def main() -> None:
    run_command(prepare_pairs)


if __name__ == "__main__":
    main()
