"""Encode a file in forked processes that are killed at given writes; run by test_encode_files.py.

Arguments: the model's folder, the file of texts, the output folder, and the plan: "kill N M …" (one process after
another, each killed at its Nth, Mth … write) or "share N" (four at once, the first of them killed at its Nth write).
"""

import os
import signal
import sys
from pathlib import Path

import torch

from embed.data.text_files import TextFile
from embed.encoding import encode_files as streaming
from embed.encoding.encoder import Encoder

torch.set_num_threads(1)
streaming.TEXTS_PER_WINDOW = 8


def encode(encoder: Encoder, kill_at: int | None) -> int:
    """Encode in a forked child, killed at its `kill_at`-th write; return the child's process id."""
    if pid := os.fork():
        return pid
    writes = 0

    def kill_at_write(function):
        def call(*args, **kwargs):
            nonlocal writes
            writes += 1
            if writes == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for name in ("_write", "atomic_write", "fsync_path", "open_memmap"):
        setattr(streaming, name, kill_at_write(getattr(streaming, name)))
    status = 1
    try:
        manifest = streaming.encode_to_folder(
            encoder, TextFile(Path(sys.argv[2])), sys.argv[3], precision="int8"
        )
        assert manifest["texts"] == 100
        status = 0
    finally:
        os._exit(status)


def main() -> None:
    encoder = Encoder.from_pretrained(sys.argv[1])
    assert encoder.fingerprint
    encoder.onednn = False  # as for the reference file
    moments = [int(number) for number in sys.argv[5:]]
    if sys.argv[4] == "kill":
        for moment in moments:
            _, status = os.waitpid(encode(encoder, moment), 0)
            assert os.WIFSIGNALED(status), f"{moment}: {status}"
        kills: list[int | None] = [None]
    else:
        kills = [moments[0], None, None, None]
    children = [encode(encoder, moment) for moment in kills]
    ended = [os.waitpid(child, 0)[1] for child in children]
    assert [bool(status) for status in ended] == [moment is not None for moment in kills], ended


main()
