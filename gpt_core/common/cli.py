"""What every script does around its one function: parse, run, and turn failures into one line and an exit code."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import tyro

from gpt_core.common.errors import ExplainedError
from gpt_core.common.presets import read_config
from gpt_core.common.terminal import printable

Function = Callable[..., Any]


def open_door(
    function: Function | dict[str, Function], *, config: type | None = None, args: list[str] | None = None
) -> None:
    """Parse the command line into `function`'s arguments, call it, and turn what goes wrong into one line.

    Exit status: 0 on success, 2 on bad arguments, 1 on a failure explained in one line on stderr; Ctrl-C ends the
    process by SIGINT without a traceback. A bug keeps its traceback.

    Args:
        function: what the door does; its signature is the command line and its docstring the help. A dict of
            functions makes subcommands.
        config: the dataclass that is the function's one argument, when the command line is
            `[--config PRESET.yaml] [--key value …]` instead.
        args: the command line, `sys.argv[1:]` if None.
    """
    prog = os.path.basename(sys.argv[0]) or "zhizhi"
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as it is while a door imports
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if isinstance(function, dict):
            tyro.extras.subcommand_cli_from_dict(function, prog=prog, args=args, use_underscores=True)
        elif config is None:
            tyro.cli(function, prog=prog, args=args, use_underscores=True)
        else:
            description = (function.__doc__ or "").partition("\n")[0]
            if "LOCAL_RANK" in os.environ:  # which the deepspeed launcher repeats as an argument
                repeated = f"--local_rank={os.environ['LOCAL_RANK']}"
                args = [arg for arg in (sys.argv[1:] if args is None else args) if arg != repeated]
            function(read_config(config, prog=prog, description=description, args=args))
    # OSError: a full disk or a missing permission, in the system's own sentence; FloatingPointError: a model gives NaN
    except (ExplainedError, OSError, FloatingPointError) as error:
        sys.exit(f"{prog}: {printable(' '.join(str(error).splitlines()))}")  # a name may hold anything
    except KeyboardInterrupt as interrupt:
        print("; ".join([f"{prog}: stopped", *map(str, interrupt.args)]), file=sys.stderr)
        # Die by the signal, so that a shell loop or make that runs us stops, too.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
