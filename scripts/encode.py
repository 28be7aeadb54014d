"""Texts → vectors on disk."""

import zhizhi._quiet  # first: Ctrl-C during the imports below

from embed.encoding.encode_files import encode_files
from gpt_core.common.cli import run_command


def main() -> None:
    run_command(encode_files)


if __name__ == "__main__":
    main()
