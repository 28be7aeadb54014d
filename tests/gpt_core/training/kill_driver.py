"""Train a tiny GPT twice, uninterrupted and killed repeatedly with SIGKILL; run by test_checkpoint.py as a process.

Every attempt is a forked child, so that torch is imported once. Each is killed at a given moment: the n-th forward of
training or evaluation, or the n-th fsync, rename or folder deletion while a checkpoint is saved.

    python kill_driver.py DATA_DIR OUT_DIR STEPS MOMENT…      MOMENT: forward:N or disk:N

The runs are OUT_DIR/straight and OUT_DIR/killed.
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from typing import Any

import torch

from gpt_core.training import validation
from gpt_core.training.pretraining import pretrain
from gpt_core.training.pretraining.config import PretrainConfig
from tests import training_imports  # noqa: F401


def settings(data_dir: str, out_dir: str, steps: int) -> PretrainConfig:
    return PretrainConfig(
        data_dir=data_dir, out_dir=out_dir, max_iters=steps, eval_interval=2, log_interval=1, warmup_iters=2,
        keep_checkpoints=1, n_layer=1, n_head=2, n_embd=16, block_size=16, batch_size=6, micro_batch_size=3,
        dropout=0.1, device="cpu",
    )  # fmt: skip


def killing(function: Callable[..., Any], counter: list[int]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        counter[0] -= 1
        if counter[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    return call


def main(data_dir: str, out_dir: str, steps: str, *moments: str) -> None:
    torch.set_num_threads(1)
    for name, moment in [("straight", None), *(("killed", moment) for moment in moments), ("killed", None)]:
        child = os.fork()
        if child == 0:
            if moment is not None:
                kind, number = moment.split(":")
                counter = [int(number)]
                if kind == "forward":
                    counted = killing(validation.next_token_loss, counter)
                    pretrain.next_token_loss = validation.next_token_loss = counted
                else:
                    os.fsync = killing(os.fsync, counter)
                    os.replace = killing(os.replace, counter)
                    shutil.rmtree = killing(shutil.rmtree, counter)
            pretrain.pretrain(settings(data_dir, f"{out_dir}/{name}", int(steps)))
            sys.stdout.flush()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        ended = "killed" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"
        print(name, moment, ended, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
