"""Add hard negatives to training pairs."""

import zhizhi._quiet  # first: Ctrl-C during the imports below

from embed.training.mine_negatives import mine_negatives
from gpt_core.common.cli import run_command


def main() -> None:
    run_command(mine_negatives)


if __name__ == "__main__":
    main()
