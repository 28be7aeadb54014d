"""Pretrain a GPT on token shards, or resume."""

import zhizhi._quiet  # first: Ctrl-C during the imports below

from gpt_core.common.cli import run_command
from gpt_core.training.parallel.ranks import end_at_once
from gpt_core.training.pretraining.config import PretrainConfig
from gpt_core.training.pretraining.pretrain import pretrain


def main() -> None:
    with end_at_once():
        run_command(pretrain, config=PretrainConfig)


if __name__ == "__main__":
    main()
