"""Run prepare_data in child processes that are stopped early; one driver serves all of test_prepare_data.py.

Each run is a forked child, so that the packages are imported once. Pieces and shards are small, and progress is saved
after every piece. The stop point of a run says how it ends: `encode:N` kills it at the n-th encoded batch, `disk:N` at
the n-th fsync, rename or deletion, and `rename` before the last rename, of the finished folder. `interrupt:N` sends
SIGINT at the n-th batch, `full:N` limits files to n bytes, and `end` lets the run complete.

    python prepare_driver.py

It reads lines of JSON: the stop points of runs one after the other, prepare_data's arguments, and files for standard
output and error. When the runs have ended it prints a line.
"""

import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet  # noqa: F401 - when it is needed; once here, not in every child

from gpt_core.common.cli import run_command
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


def run_until(stop_point: str, args: list[str]) -> None:
    pieces.PIECE_CHARACTERS = prepare.PIECE_CHARACTERS = 500
    prepare.SAVE_SECONDS = 0
    os.fsync = lambda file: None  # slow, and only a power cut loses what is not synced, not a kill
    prepare.ShardWriter = partial(ShardWriter, shard_tokens=1500)
    kind, _, number = stop_point.partition(":")
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
    run_command(prepare.prepare_data, args=args)
    sys.stdout.flush()


def run_all(stop_points: list[str], args: list[str]) -> None:
    for stop_point in stop_points:
        print(stop_point, flush=True)
        child = os.fork()
        if child == 0:
            try:
                run_until(stop_point, args)
            except SystemExit as end:
                print(end.code, file=sys.stderr)
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(f"status {os.waitstatus_to_exitcode(status)}", flush=True)


def main() -> None:
    gpt2_tiktoken(), gpt2_rust()  # once here, not in every child
    for line in sys.stdin:
        stop_points, args, *files = json.loads(line)
        if (child := os.fork()) == 0:
            for i, path in enumerate(files, 1):
                os.dup2(os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND), i)
            run_all(stop_points, args)
            os._exit(0)
        os.waitpid(child, 0)
        print(flush=True)


if __name__ == "__main__":
    main()
