"""Shapes, parameter counts, positions, attention and the next token of a model."""

import zhizhi._quiet  # first: Ctrl-C during the imports below

from gpt_core.common.cli import open_door
from gpt_core.evaluation.inspect_model import inspect_model


def main() -> None:
    open_door(inspect_model)


if __name__ == "__main__":
    main()
