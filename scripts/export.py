"""Hand a model to other tools."""

import zhizhi._quiet  # first: Ctrl-C during the imports below

from embed.formats.export import export_model
from gpt_core.common.cli import open_door


def main() -> None:
    open_door(export_model)


if __name__ == "__main__":
    main()
