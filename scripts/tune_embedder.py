"""Choose the settings of an embedder on development collections."""

import zhizhi._quiet  # first: Ctrl-C during the imports below

from gpt_core.common.cli import run_command
from index.evaluation.tune_embedder import tune_embedder


def main() -> None:
    run_command(tune_embedder)


if __name__ == "__main__":
    main()
