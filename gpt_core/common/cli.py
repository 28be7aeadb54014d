"""The wrapper of every command: parse the command line, run one function, report a failure in one line."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import tyro

from gpt_core.common.errors import ExplainedError
from gpt_core.common.presets import read_config
from gpt_core.common.terminal import escape_unencodable, printable

Function = Callable[..., Any]


def run_command(
    function: Function | dict[str, Function],
    *,
    config: type | None = None,
    args: list[str] | None = None,
    selected_by: str | None = None,
) -> None:
    """Parse the command line into `function`'s arguments, call it, and report a failure in one line.

    Exit status: 0 on success, 2 on bad arguments, 1 on a failure explained in one line on stderr; Ctrl-C ends the
    process by SIGINT without a traceback. Other exceptions are bugs and keep their traceback.

    Args:
        function: its signature defines the command line, its docstring the help. A dict of functions defines
            subcommands.
        config: dataclass of the function's only argument; the command line is then
            `[--config PRESET.yaml] [--key value …]`.
        args: the command line, `sys.argv[1:]` if None.
        selected_by: an option without a value by which the command chose this function; it is no argument of it.
    """
    command = os.path.basename(sys.argv[0]) or "zhizhi"
    prog = f"{command} {selected_by}" if selected_by else command
    args = [arg for arg in (sys.argv[1:] if args is None else args) if arg != selected_by]
    escape_unencodable()
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # set by zhizhi._quiet during the imports
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if isinstance(function, dict):
            tyro.extras.subcommand_cli_from_dict(function, prog=prog, args=args, use_underscores=True)
        elif config is None:
            tyro.cli(function, prog=prog, args=args, use_underscores=True)
        else:
            description = (function.__doc__ or "").partition("\n")[0]
            if "LOCAL_RANK" in os.environ:  # the deepspeed launcher passes it as an argument, too
                repeated = f"--local_rank={os.environ['LOCAL_RANK']}"
                args = [arg for arg in args if arg != repeated]
            function(read_config(config, prog=prog, description=description, args=args))
    # OSError: such as a full disk or a missing permission; FloatingPointError: a model gives NaN
    except (ExplainedError, OSError, FloatingPointError) as error:
        # file names may contain control characters
        sys.exit(f"{command}: {printable(' '.join(str(error).splitlines()))}")
    except KeyboardInterrupt as interrupt:
        print("; ".join([f"{command}: stopped", *map(str, interrupt.args)]), file=sys.stderr)
        # Exit by the signal, so that a shell loop or make that started the command stops, too.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
