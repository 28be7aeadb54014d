"""Train a tiny GPT on several ranks; one process of its own serves all of test_parallel.py, and imports torch once.

    python ranks_driver.py DATA_DIR

It reads lines with a scenario's name and the folder of its files. Each scenario runs in a forked child, whose children
are the ranks, with torchrun's environment variables. It writes its results to found.json in the folder and its standard
error to said.txt; then its exit status is printed.
"""

import ctypes
import json
import os
import signal
import socket
import sys
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import register_optimizer_step_pre_hook

from gpt_core.common.cli import run_command
from gpt_core.hardware.device import peak_memory
from gpt_core.model.gpt import GPT
from gpt_core.training import loop
from gpt_core.training.parallel import ranks
from gpt_core.training.pretraining import pretrain
from gpt_core.training.pretraining.config import PretrainConfig
from tests import training_imports  # noqa: F401

MAX_SECONDS = 240  # then SIGALRM ends the process: deadlocked ranks would wait for half an hour
M_MMAP_THRESHOLD = -3  # mallopt's parameter: larger blocks are mapped and unmapped one by one


def settings(data_dir: str, out_dir: str, **keys: Any) -> PretrainConfig:
    small = PretrainConfig(
        data_dir=data_dir, out_dir=out_dir, max_iters=6, eval_interval=3, log_interval=1, warmup_iters=2, n_layer=2,
        n_head=2, n_embd=32, block_size=16, batch_size=12, optimizer="adamw", device="cpu", dtype="float32", threads=1,
        vocab_multiple=1,
    )  # fmt: skip
    return replace(small, **keys)


def run_ranks(n: int, config: PretrainConfig, inside: Callable[[int], None] | None = None) -> list[int]:
    """Train on n ranks, without torchrun's variables if n is 1; return their exit codes (negative: signals)."""
    return wait(start_ranks(n, config, inside))


def start_ranks(n: int, config: PretrainConfig, inside: Callable[[int], None] | None = None) -> list[int]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    children = []
    for rank in range(n):
        child = os.fork()
        if child == 0:
            signal.alarm(MAX_SECONDS)
            torch.set_num_threads(1)
            if n > 1:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": port}
                os.environ |= {"WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1"}
            os.dup2(2, 1)
            code: Any = 0
            try:
                if inside is not None:
                    inside(rank)
                run_command(lambda: pretrain.pretrain(config), args=[])
            except SystemExit as error:
                code = error.code
                if isinstance(code, str):
                    print(f"rank {rank}: {code}", file=sys.stderr)
                    code = 1
            finally:
                sys.stderr.flush()
                os._exit(code or 0)
        children.append(child)
    return children


def wait(children: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def rows(out_dir: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(out_dir, "log.jsonl").read_text().splitlines()]


def losses(out_dir: str) -> list[float]:
    return [row["loss"] for row in rows(out_dir) if "loss" in row]


def gradients(data: str, out: str) -> Any:
    """Loss and gradient of every step, in float64, for ranks × micro-batches 1×1, 1×4, 2×2, 4×1."""
    found = {}
    for n, micro_batch_size in ((1, 12), (1, 3), (2, 3), (4, 3)):
        name = f"{n}x{12 // n // micro_batch_size}"
        config = settings(
            data, f"{out}/{name}", micro_batch_size=micro_batch_size, max_iters=3, grad_clip=0.5
        )

        def inside(rank: int, path: str = f"{out}/{name}.pt") -> None:
            torch.set_default_dtype(torch.float64)
            taken: list[torch.Tensor] = []

            def keep(optimizer: torch.optim.Optimizer, *_: Any) -> None:
                tensors = [p.grad.flatten() for g in optimizer.param_groups for p in g["params"]]
                taken.append(torch.cat(tensors))
                torch.save(torch.stack(taken), f"{path}.{rank}")

            register_optimizer_step_pre_hook(keep)

        codes = run_ranks(n, config, inside)
        per_rank = [torch.load(f"{out}/{name}.pt.{rank}") for rank in range(n)]
        found[name] = {"codes": codes, "losses": losses(config.out_dir)}
        found[name]["ranks_differ"] = max(float((g - per_rank[0]).abs().max()) for g in per_rank)
        reference = torch.load(f"{out}/1x1.pt.0")
        found[name]["difference"] = float((per_rank[0] - reference).abs().max())
        found[name]["length"] = float(reference[0].norm())
    return found


def resharded(data: str, out: str) -> Any:
    """20 steps on 2 ranks with DDP, on 1, on 2 with FSDP2, and resumed as 2 (DDP) → 1 → 2 (FSDP2) → 2 (DDP)."""
    base = settings(data, out, max_iters=20, eval_interval=4, log_interval=1)
    found = {}
    straight = (("two", 2, "ddp"), ("one", 1, "ddp"), ("fsdp2", 2, "fsdp2"))
    for name, n, parallel in straight:
        config = replace(base, out_dir=f"{out}/{name}", parallel=parallel)
        found[name] = {"codes": run_ranks(n, config), "losses": losses(config.out_dir)}
    codes = []
    for steps, n, parallel in ((8, 2, "ddp"), (12, 1, "ddp"), (16, 2, "fsdp2"), (20, 2, "ddp")):
        config = replace(base, out_dir=f"{out}/mixed", parallel=parallel, max_iters=steps, lr_decay_iters=20)
        codes += run_ranks(n, config)
    found["mixed"] = {"codes": codes, "losses": losses(f"{out}/mixed")}
    return found


def resumed(data: str, out: str) -> Any:
    """6 steps with dropout and Muon on 2 ranks, uninterrupted, and killed in the fifth step and resumed."""
    base = settings(data, f"{out}/straight", dropout=0.2, optimizer="muon", micro_batch_size=3)
    found: dict[str, Any] = {"straight": run_ranks(2, base)}

    def die(rank: int) -> None:
        calls = [0]
        real = pretrain.next_token_loss

        def counted(model: torch.nn.Module, micro_batch: Any) -> Any:
            calls[0] += model.training
            if rank == 1 and calls[0] == 9:  # the fifth step
                os.kill(os.getpid(), signal.SIGKILL)
            return real(model, micro_batch)

        pretrain.next_token_loss = counted

    killed = replace(base, out_dir=f"{out}/killed")
    found["killed"] = run_ranks(2, killed, die)
    found["left"] = sorted(p.name for p in Path(killed.out_dir).glob("*step-*"))
    found["again"] = run_ranks(2, killed)
    return found


def uninterrupted(data: str, out: str) -> Any:
    """Two ranks with the settings in OUT_DIR/keys.json."""
    keys = json.loads(Path(out, "keys.json").read_text())
    return run_ranks(2, PretrainConfig(data_dir=data, out_dir=f"{out}/straight", **keys))


def terminated(data: str, out: str) -> Any:
    """SIGTERM to one rank of two."""
    config = settings(data, f"{out}/run", max_iters=100_000, eval_interval=100_000, log_interval=1)
    children = start_ranks(2, config)
    log = Path(config.out_dir, "log.jsonl")
    end = time.monotonic() + 60
    while time.monotonic() < end and not (log.exists() and log.read_text().count("\n") > 3):
        time.sleep(0.05)
    os.kill(children[1], signal.SIGTERM)
    codes = wait(children)
    steps = sorted(p.name for p in Path(config.out_dir).glob("step-*"))
    return {"codes": codes, "checkpoints": steps, "last": rows(config.out_dir)[-1]["step"]}


def started(data: str, out: str) -> Any:
    """Each rank's memory while an FSDP2 run starts, in multiples of the weights, and whether these are a process's."""
    base = settings(data, f"{out}/run", parallel="fsdp2", n_layer=6, n_embd=512)

    def inside(rank: int) -> None:
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)  # freed memory is returned to the system at once
        real = loop.make_parallel

        def watched(model: GPT, *rest: Any) -> Any:
            parallel = real(model, *rest)
            peak = peak_memory(torch.device("cpu")) - before
            weights = parallel.weights()
            torch.manual_seed(base.seed)
            alone = GPT(model.config).state_dict()
            size = sum(tensor.nbytes for tensor in alone.values())
            same = rank > 0 or (
                weights.keys() == alone.keys() and all(torch.equal(weights[n], t) for n, t in alone.items())
            )
            rope = torch.equal(model.rope.cos, GPT(model.config).rope.cos)  # type: ignore[union-attr]
            Path(out, f"rank-{rank}.json").write_text(json.dumps([peak / size, same and rope]))
            sys.exit(0)

        loop.make_parallel = watched
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from the present memory
        before = peak_memory(torch.device("cpu"))

    codes = run_ranks(2, base, inside)
    ranks = [json.loads(Path(out, f"rank-{rank}.json").read_text()) for rank in range(2)]
    return {"codes": codes, "peaks": [peak for peak, _ in ranks], "same": [same for _, same in ranks]}


def refused(data: str, out: str) -> Any:
    """Errors on every rank, and an error of rank 0, which alone checks the data."""
    torn = Path(out, "torn")
    torn.mkdir(parents=True)
    for path in Path(data).iterdir():
        (torn / path.name).write_bytes(path.read_bytes())
    shard = torn / "train-00000.bin"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    return {
        "torn": run_ranks(2, settings(str(torn), f"{out}/a")),
        "does not divide": run_ranks(2, settings(data, f"{out}/b", batch_size=9)),
        "alone": run_ranks(1, settings(data, f"{out}/c", parallel="fsdp2")),
    }


def failed(data: str, out: str) -> Any:
    """Whether the DDP model still exists after `join` ended with an exception that has another one as its cause."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        os.environ["MASTER_PORT"] = str(s.getsockname()[1])
    left = []

    def fail() -> None:
        model = DistributedDataParallel(torch.nn.Linear(2, 2))
        left.append(weakref.ref(model))
        try:
            model(torch.ones(3))
        except RuntimeError as error:
            raise ValueError("of another kind") from error

    try:
        with ranks.join("cpu"):
            fail()
    except ValueError as error:
        return {
            "left": left[0]() is not None,
            "said": str(error),
            "group": torch.distributed.is_initialized(),
        }


def main(data_dir: str) -> None:
    for line in sys.stdin:
        scenario, _, out_dir = line.rstrip("\n").partition(" ")
        if (child := os.fork()) == 0:
            signal.alarm(MAX_SECONDS)
            os.dup2(os.open(f"{out_dir}/said.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND), 2)
            found = globals()[scenario](data_dir, out_dir)
            Path(out_dir, "found.json").write_text(json.dumps(found))
            os._exit(0)
        print(*wait([child]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
