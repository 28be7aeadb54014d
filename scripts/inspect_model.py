"""Shapes, parameter counts, positions, attention and the next token of a model."""

import zhizhi._quiet  # first: Ctrl-C during the imports below

from gpt_core.common.cli import run_command
from gpt_core.evaluation.inspect_model import inspect_model


def main() -> None:
    run_command(inspect_model)


if __name__ == "__main__":
    main()
