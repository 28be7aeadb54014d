"""Verify, repair, back up, measure and vacuum an index, or change its embedder."""

import zhizhi._quiet  # first: Ctrl-C during the imports below

from gpt_core.common.cli import run_command
from index.manage_index import backup, reembed, repair, stats, vacuum, verify


def main() -> None:
    run_command(
        {
            "verify": verify,
            "repair": repair,
            "backup": backup,
            "stats": stats,
            "vacuum": vacuum,
            "reembed": reembed,
        }
    )


if __name__ == "__main__":
    main()
