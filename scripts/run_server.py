"""The HTTP service and the web page."""

import zhizhi._quiet  # first: Ctrl-C during the imports below

from gpt_core.common.cli import run_command
from serve.run_server import run_server


def main() -> None:
    run_command(run_server)


if __name__ == "__main__":
    main()
