"""Talk with a model."""

import zhizhi._quiet  # first: Ctrl-C during the imports below

from gpt_core.chat import chat
from gpt_core.doors import open_door


def main() -> None:
    open_door(chat)


if __name__ == "__main__":
    main()
