"""Questions answered on the terminal, with citations."""

import zhizhi._quiet  # first: Ctrl-C during the imports below

from gpt_core.common.cli import open_door
from serve.ask import ask


def main() -> None:
    open_door(ask)


if __name__ == "__main__":
    main()
