"""Search from the terminal."""

import zhizhi._quiet  # first: Ctrl-C during the imports below

from gpt_core.common.cli import open_door
from index.search_index import search_index


def main() -> None:
    open_door(search_index)


if __name__ == "__main__":
    main()
