"""Pretrain a GPT on token shards, or resume."""

import zhizhi._quiet  # first: Ctrl-C during the imports below

from gpt_core.doors import open_door
from gpt_core.pretrain import pretrain
from gpt_core.pretrain_config import PretrainConfig
from gpt_core.ranks import end_at_once


def main() -> None:
    with end_at_once():
        open_door(pretrain, config=PretrainConfig)


if __name__ == "__main__":
    main()
