"""Choose the settings of an embedder that nobody trained as one."""

import zhizhi._quiet  # first: Ctrl-C during the imports below

from gpt_core.common.cli import open_door
from index.evaluation.tune_embedder import tune_embedder


def main() -> None:
    open_door(tune_embedder)


if __name__ == "__main__":
    main()
