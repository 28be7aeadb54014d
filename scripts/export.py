"""Export a model for other tools."""

import zhizhi._quiet  # first: Ctrl-C during the imports below

from embed.formats.export import export_model
from gpt_core.common.cli import run_command


def main() -> None:
    run_command(export_model)


if __name__ == "__main__":
    main()
