"""Documents → searchable index."""

import zhizhi._quiet  # first: Ctrl-C during the imports below

from gpt_core.common.cli import run_command
from gpt_core.training.parallel.ranks import end_at_once
from index.build_index import build_index


def main() -> None:
    with end_at_once():
        run_command(build_index)


if __name__ == "__main__":
    main()
