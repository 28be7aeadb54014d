"""Train tiny embedders and kill some runs with SIGKILL; run by test_train.py as a subprocess.

Every run is a forked child, so that torch is imported once.

    python training_driver.py MODEL DATA… OUT_DIR
"""

import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ir_measures  # noqa: F401 - as training_imports
import peft  # noqa: F401
import torch

from embed.training.config import TrainEmbedderConfig
from embed.training.step import EmbeddingLoss
from embed.training.train import train_embedder
from gpt_core.common.cli import run_command
from tests import training_imports  # noqa: F401

STEPS = 6
MIXED = {"trainable": "full", "dropout": 0.1, "chunk_size": 5, "learn_temperature": True, "matryoshka": (8,)}
SCENARIOS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {  # configuration keys, and when to kill
    "two sets": (MIXED, ("step:2", "disk:9", "step:4", "disk:14")),
    "lora": ({"trainable": "lora", "lora_rank": 2, "dropout": 0.1, "dimension": 16}, ("step:3", "disk:7")),
}  # fmt: skip


def settings(model: str, data: list[str], out_dir: Path, **keys: Any) -> TrainEmbedderConfig:
    small: dict[str, Any] = {
        "init_from": model, "data": tuple(data), "out_dir": str(out_dir), "max_iters": STEPS, "eval_interval": 2,
        "lr_decay_iters": STEPS, "log_interval": 1, "warmup_iters": 1, "batch_size": 8, "max_tokens": 24,
        "learning_rate": 1e-2, "device": "cpu", "dtype": "float32", "threads": 1, "keep_checkpoints": 1,
    }  # fmt: skip
    return TrainEmbedderConfig(**small | keys)


def kill_at_call(function: Callable[..., Any], counter: list[int]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        counter[0] -= 1
        if counter[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    return call


def start_run(
    config: TrainEmbedderConfig, moment: str | None = None, environment: dict[str, str] | None = None
) -> int:
    """Start a training run in a forked child; return its process id."""
    if child := os.fork():
        return child
    torch.set_num_threads(1)
    os.environ |= environment or {}
    os.dup2(2, 1)  # standard output is for the parent's JSON
    code: Any = 0
    try:
        if moment is not None:
            kind, number = moment.split(":")
            counter = [int(number)]
            if kind == "step":
                EmbeddingLoss.__call__ = kill_at_call(EmbeddingLoss.__call__, counter)  # type: ignore[method-assign]
            else:
                os.fsync, os.replace = kill_at_call(os.fsync, counter), kill_at_call(os.replace, counter)
                shutil.rmtree = kill_at_call(shutil.rmtree, counter)  # type: ignore[assignment]
        run_command(lambda: train_embedder(config), args=[])
    except SystemExit as error:
        print(error.code, file=sys.stderr)
        code = 1
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait(children: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def ranks(n: int, config: TrainEmbedderConfig) -> list[int]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} | dict.fromkeys(
        ("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(n)
    )
    return wait([start_run(config, None, shared | {"RANK": str(i), "LOCAL_RANK": str(i)}) for i in range(n)])


def main(model: str, *paths: str) -> None:
    data, out_dir = list(paths[:-1]), Path(paths[-1])
    found: dict[str, Any] = {}
    for name, (keys, moments) in SCENARIOS.items():
        straight, killed = (out_dir / f"{name} {how}" for how in ("straight", "killed"))
        found[f"{name} straight"] = wait([start_run(settings(model, data, straight, **keys))])
        statuses = [
            wait([start_run(settings(model, data, killed, **keys), moment)])[0] for moment in (*moments, None)
        ]
        found[f"{name} killed"] = statuses
    keys = {"matryoshka": (8,), "n_negatives": 0}
    for parallel in ("ddp", "fsdp2"):
        run = settings(model, data, out_dir / parallel, parallel=parallel, **keys)
        found[parallel] = ranks(2, replace(run, max_iters=2))
        # One process resumes a checkpoint of two ranks, and two ranks resume its checkpoint.
        found[f"{parallel} alone"] = wait([start_run(replace(run, max_iters=4, parallel="ddp"))])
        found[f"{parallel} again"] = ranks(2, run)
    found["one"] = wait([start_run(settings(model, data, out_dir / "one", **keys))])
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
