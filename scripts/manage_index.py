"""Verify, repair, back up, measure and vacuum an index, and change its embedder or how its vectors are searched."""

import zhizhi._quiet  # first: Ctrl-C during the imports below

from gpt_core.common.cli import run_command
from index.manage_index import backup, reembed, repair, snapshot, stats, vacuum, verify


def main() -> None:
    commands = (verify, repair, backup, stats, vacuum, snapshot, reembed)
    run_command({command.__name__: command for command in commands})


if __name__ == "__main__":
    main()
