"""Train an embedder on pairs, or to imitate another one, or resume."""

import zhizhi._quiet  # first: Ctrl-C during the imports below

from embed.training import train_embedder
from embed.training_config import TrainEmbedderConfig
from gpt_core.doors import open_door
from gpt_core.ranks import end_at_once


def main() -> None:
    with end_at_once():
        open_door(train_embedder, config=TrainEmbedderConfig)


if __name__ == "__main__":
    main()
