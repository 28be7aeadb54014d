"""Questions answered on the terminal, with citations."""

import zhizhi._quiet  # first: Ctrl-C during the imports below

from gpt_core.common.cli import run_command
from serve.ask import ask


def main() -> None:
    run_command(ask)


if __name__ == "__main__":
    main()
