"""Text → token shards."""

import zhizhi._quiet  # first: Ctrl-C during the imports below

from gpt_core.common.cli import run_command
from gpt_core.data.prepare_data import prepare_data


def main() -> None:
    run_command(prepare_data)


if __name__ == "__main__":
    main()
