"""Compare training steps on two ranks with one process; run by test_step.py as a subprocess. Prints JSON.

python contrastive_driver.py
"""

import json
import os
import signal
import socket
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # imported once here instead of in every child

from embed.training.step import LanguageModel
from gpt_core.hardware.device import Numerics
from gpt_core.training.loop import make_parallel
from gpt_core.training.parallel.ranks import Ranks, join
from tests.embed.training.contrastive_cases import batch, difference, examples, settings, step, trainee

WORLD = 2
EVERYTHING = {
    "learn_temperature": True, "n_negatives": 2, "matryoshka": (4, 8), "false_negative_margin": 0.1, "guide": "guide",
    "teacher": "teacher", "similarity_weight": 0.5, "lm_weight": 0.3,
}  # fmt: skip
# Configuration keys, and: tokens: tokens per forward; plain: texts without positives; bare: rank 0 has short texts
# without negatives, and so runs fewer forwards than rank 1
SCENARIOS: dict[str, dict[str, Any]] = {
    "ddp": {"tokens": 60},
    "ddp, uneven chunks": {"chunk_size": 8, "n_negatives": 2, "bare": True},
    "ddp, everything": {"chunk_size": 3, **EVERYTHING},
    "ddp, lora": {"chunk_size": 3, "trainable": "lora", **EVERYTHING},
    "ddp, texts alone": {"teacher": "teacher", "learn_temperature": True, "plain": True, "tokens": 60},
    "fsdp2, uneven groups": {"parallel": "fsdp2", "tokens": 60, "n_negatives": 2, "bare": True},
    "fsdp2, everything": {"parallel": "fsdp2", "chunk_size": 3, **EVERYTHING},
    "fsdp2, lora": {"parallel": "fsdp2", "trainable": "lora", "tokens": 60, **EVERYTHING},
}


def run(ranks: Ranks, name: str) -> dict[str, float]:
    """Run two steps of a scenario; return the largest differences between the ranks and one process with all texts."""
    keys = dict(SCENARIOS[name])
    plain, bare, tokens = keys.pop("plain", False), keys.pop("bare", False), keys.pop("tokens", 10**6)
    config = settings(**keys)
    alone, model = (trainee(config, config.teacher is not None, dense=True) for _ in range(2))
    parallel = make_parallel(model, config, ranks, Numerics())
    found = {"loss": 0.0, "gradient": 0.0, "length": 0.0, "between ranks": 0.0}
    for seed in (1, 2):
        made = examples(8, plain, seed)
        if bare:
            made[:4] = [type(e)(e.query[:2], e.positives) for e in made[:4]]
        of_rank = batch(made, config, ranks.rank, WORLD, seed)
        with parallel.micro_step(last=True):
            loss, means = step(parallel.network, config, of_rank, tokens, ranks)
        loss = float(ranks.sum(torch.tensor(loss, dtype=torch.float64)))
        ours = {key: g * WORLD for key, g in means.items()}
        if config.lm_weight:  # between steps, as an evaluation does
            windows = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(seed))
            with torch.no_grad():
                lm, lm_alone = (float(LanguageModel(m)(windows, windows).loss_sum) for m in (model, alone))
            found["loss"] = max(found["loss"], abs(lm - lm_alone))
        wanted_loss, wanted = step(alone, config, batch(made, config, seed=seed))
        everyone = [None] * WORLD
        torch.distributed.all_gather_object(everyone, means)
        found["loss"] = max(found["loss"], abs(loss - wanted_loss))
        found["gradient"] = max(found["gradient"], difference(ours, wanted))
        found["between ranks"] = max(found["between ranks"], difference(everyone[0], everyone[1]))
        found["length"] = max(found["length"], max(float(g.abs().max()) for g in wanted.values()))
    return found


def child(rank: int, port: int, out: Path) -> None:
    signal.alarm(500)  # otherwise deadlocked ranks would wait for half an hour
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": str(port)}
    os.environ |= {"WORLD_SIZE": str(WORLD), "LOCAL_WORLD_SIZE": str(WORLD), "MASTER_ADDR": "127.0.0.1"}
    found = {}
    with join("cpu") as ranks:
        for name in sys.argv[1:] or SCENARIOS:
            print(rank, name, file=sys.stderr, flush=True)
            found[name] = run(ranks, name)
        if ranks.main:
            out.write_text(json.dumps(found))


def main() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "found.json")
        children = []
        for rank in range(WORLD):
            if (pid := os.fork()) == 0:
                try:
                    child(rank, port, out)
                    os._exit(0)
                except BaseException:
                    traceback.print_exc()
                    sys.stderr.flush()
                    os._exit(1)
            children.append(pid)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        if any(codes):
            sys.exit(f"the ranks ended with {codes}")
        print(out.read_text())


if __name__ == "__main__":
    main()
