"""Prepare data in lives that end early; run by test_prepare.py as a process of its own.

Every life is a forked child, so that the packages are imported once, with small pieces and shards and a progress file
after every piece. A life is given a moment: `encode:N` or `disk:N` kills it as the n-th batch is encoded or the n-th
time that something is forced to the disk, renamed or deleted, and `rename` when all is done but the name;
`interrupt:N` is a Ctrl-C at the n-th batch; `full:N` is a disk that takes files of n bytes; `end` lets it come to its
end.

    python prepare_driver.py MOMENT… -- prepare_data's arguments
"""

import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from gpt_core.common.cli import open_door
from gpt_core.data import prepare_data as prepare
from gpt_core.data import text_pieces as pieces
from gpt_core.data.shards import ShardWriter
from gpt_core.tokenizer.builtin import gpt2_rust, gpt2_tiktoken
from gpt_core.tokenizer.tokenizer import Tokenizer


def at(counter: list[int], signal_number: int, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        counter[0] -= 1
        if counter[0] == 0:
            os.kill(os.getpid(), signal_number)
        return function(*args, **kwargs)

    return call


def live(moment: str, args: list[str]) -> None:
    pieces.PIECE = prepare.PIECE = 500
    prepare.SAVE_SECONDS = 0
    os.fsync = lambda file: (
        None
    )  # a kill does not lose what the system has, only a power cut does; and it is slow
    prepare.ShardWriter = partial(ShardWriter, shard_tokens=1500)
    kind, _, number = moment.partition(":")
    counter = [int(number or 0)]
    if kind in ("encode", "interrupt"):
        end = signal.SIGKILL if kind == "encode" else signal.SIGINT
        Tokenizer.encode_to_numpy = at(counter, end, Tokenizer.encode_to_numpy)
    elif kind == "disk":
        os.fsync = at(counter, signal.SIGKILL, os.fsync)
        os.replace = at(counter, signal.SIGKILL, os.replace)
        shutil.rmtree = at(counter, signal.SIGKILL, shutil.rmtree)
    elif kind == "rename":
        replace = os.replace
        kill = at([1], signal.SIGKILL, replace)
        os.replace = lambda old, new: (kill if Path(new).name == "out" else replace)(old, new)
    elif kind == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (counter[0], counter[0]))
    open_door(prepare.prepare_data, args=args)
    sys.stdout.flush()


def main() -> None:
    cut = sys.argv.index("--")
    gpt2_tiktoken(), gpt2_rust()  # once here, not in every child
    for moment in sys.argv[1:cut]:
        print(moment, flush=True)
        child = os.fork()
        if child == 0:
            try:
                live(moment, sys.argv[cut + 1 :])
            except SystemExit as end:
                print(end.code, file=sys.stderr)
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(f"status {os.waitstatus_to_exitcode(status)}", flush=True)


if __name__ == "__main__":
    main()
