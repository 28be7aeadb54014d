"""Documents → searchable index."""

import zhizhi._quiet  # first: Ctrl-C during the imports below

from gpt_core.common.cli import run_command
from index.build_index import build_index


def main() -> None:
    run_command(build_index)


if __name__ == "__main__":
    main()
