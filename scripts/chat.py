"""Talk with a model."""

import zhizhi._quiet  # first: Ctrl-C during the imports below

from gpt_core.common.cli import run_command
from gpt_core.generation.chat import chat


def main() -> None:
    run_command(chat)


if __name__ == "__main__":
    main()
