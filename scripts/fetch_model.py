"""Download a model into the local model cache."""

import zhizhi._quiet  # first: Ctrl-C during the imports below

from gpt_core.common.cli import run_command
from gpt_core.hub.download import fetch_model


def main() -> None:
    run_command(fetch_model)


if __name__ == "__main__":
    main()
