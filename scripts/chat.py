"""Talk with a model."""

import zhizhi._quiet  # first: Ctrl-C during the imports below

from gpt_core.common.cli import open_door
from gpt_core.generation.chat import chat


def main() -> None:
    open_door(chat)


if __name__ == "__main__":
    main()
