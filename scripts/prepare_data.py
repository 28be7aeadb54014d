"""Text → token shards."""

import zhizhi._quiet  # first: Ctrl-C during the imports below

from gpt_core.common.cli import open_door
from gpt_core.data.prepare_data import prepare_data


def main() -> None:
    open_door(prepare_data)


if __name__ == "__main__":
    main()
