"""Text from a model."""

import zhizhi._quiet  # first: Ctrl-C during the imports below

from gpt_core.common.cli import open_door
from gpt_core.generation.sample import sample


def main() -> None:
    open_door(sample)


if __name__ == "__main__":
    main()
