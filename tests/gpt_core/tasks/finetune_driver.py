"""Fine-tune tiny models, kill some runs with SIGKILL, and train on two ranks; run by test_finetune.py as a subprocess.

Every run is a forked child, so that torch is imported once.

    python finetune_driver.py FOLDER
"""

import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import peft  # noqa: F401 - as training_imports
import torch

from gpt_core.common.cli import run_command
from gpt_core.tasks import finetune
from gpt_core.tasks.config import FinetuneConfig
from tests import training_imports  # noqa: F401

SECONDS = 240  # then SIGALRM ends a child: deadlocked ranks would wait for half an hour


def settings(folder: Path, task: str, out_dir: str, **keys: Any) -> FinetuneConfig:
    small: dict[str, Any] = {
        "task": task, "init_from": str(folder / "qwen3"), "data": (str(folder / f"{task}.jsonl"),),
        "out_dir": str(folder / "runs" / out_dir), "max_iters": 6, "eval_interval": 2, "log_interval": 1,
        "warmup_iters": 1, "batch_size": 8, "max_tokens": 32, "learning_rate": 1e-2, "device": "cpu",
        "dtype": "float32", "threads": 1, "keep_checkpoints": 1, "no_answer": 0.5, "tokens_per_forward": 200,
    }  # fmt: skip
    return FinetuneConfig(**small | keys)


def run(config: FinetuneConfig, kill_at: int | None = None, ranks: int = 1) -> list[int]:
    """Fine-tune on n ranks; return their exit codes (negative: signals)."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            signal.alarm(SECONDS)
            torch.set_num_threads(1)
            if ranks > 1:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
                os.environ |= {
                    "LOCAL_WORLD_SIZE": str(ranks),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": port,
                }
            os.dup2(2, 1)  # standard output is for the parent's JSON
            code: Any = 0
            try:
                if kill_at is not None:
                    kill_at_step(kill_at)
                run_command(lambda: finetune.finetune(config), args=[])
            except SystemExit as error:
                print(error.code, file=sys.stderr)
                code = 1
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def kill_at_step(number: int) -> None:
    taken = finetune.TaskBatches.__next__

    def next_or_die(self: Any) -> Any:
        if self.taken == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return taken(self)

    finetune.TaskBatches.__next__ = next_or_die  # type: ignore[method-assign]


def main() -> None:
    folder = Path(sys.argv[1])
    found: dict[str, list[int]] = {}
    for task, keys in (("span", {"dropout": 0.1}), ("choice", {"trainable": "lora", "lora_rank": 2})):
        found[f"{task} straight"] = run(settings(folder, task, f"{task} straight", **keys))
        broken = settings(folder, task, f"{task} killed", **keys)
        found[f"{task} killed"] = [*run(broken, 3), *run(broken, 5), *run(broken)]
    for task in ("similarity", "span"):
        for parallel in ("ddp", "fsdp2"):
            config = settings(folder, task, f"{task} {parallel}", parallel=parallel)
            found[f"{task} {parallel}"] = run(config, ranks=2)
        found[f"{task} one"] = run(settings(folder, task, f"{task} one"))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
