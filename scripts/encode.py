"""Texts → vectors on disk."""

import zhizhi._quiet  # first: Ctrl-C during the imports below

from embed.streaming import encode_files
from gpt_core.doors import open_door


def main() -> None:
    open_door(encode_files)


if __name__ == "__main__":
    main()
