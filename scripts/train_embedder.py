"""Train an embedder on pairs, or to imitate another one, or resume."""

import zhizhi._quiet  # first: Ctrl-C during the imports below

from embed.training.config import TrainEmbedderConfig
from embed.training.train import train_embedder
from gpt_core.common.cli import run_command
from gpt_core.training.parallel.ranks import end_at_once


def main() -> None:
    with end_at_once():
        run_command(train_embedder, config=TrainEmbedderConfig)


if __name__ == "__main__":
    main()
