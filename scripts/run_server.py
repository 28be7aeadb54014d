"""The HTTP service and the web page."""

import zhizhi._quiet  # first: Ctrl-C during the imports below

from gpt_core.doors import open_door
from serve.server import run_server


def main() -> None:
    open_door(run_server)


if __name__ == "__main__":
    main()
