"""What every script does around its one function: parse, run, and turn failures into one line and an exit code."""

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import tyro

from gpt_core.common.errors import InputError
from gpt_core.common.presets import read_config

CONTROL = re.compile(r"[\0-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and line feed
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
    except (InputError, OSError, FloatingPointError) as error:
        sys.exit(f"{prog}: {printable(' '.join(str(error).splitlines()))}")  # a name may hold anything
    except KeyboardInterrupt as interrupt:
        print("; ".join([f"{prog}: stopped", *map(str, interrupt.args)]), file=sys.stderr)
        # Die by the signal, so that a shell loop or make that runs us stops, too.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)


def printable(text: str) -> str:
    """Text of others for a terminal: control characters, which could recolour, retitle or clear it, become U+FFFD."""
    return CONTROL.sub("\ufffd", text)


def write_text(text: str) -> None:
    """Write text of others to stdout at once: as it is into a pipe or a file, `printable` on a terminal."""
    print(printable(text) if sys.stdout.isatty() else text, end="", flush=True)


@contextmanager
def until_nobody_reads() -> Iterator[None]:
    """Write to stdout inside; end quietly where its reader has enough, as `| head` does."""
    try:
        yield
    except BrokenPipeError:  # the null device takes what Python still flushes at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
