"""Search from the terminal."""

import zhizhi._quiet  # first: Ctrl-C during the imports below

from gpt_core.common.cli import run_command
from index.search_index import search_index


def main() -> None:
    run_command(search_index)


if __name__ == "__main__":
    main()
