"""Train with ZeRO-3 in real processes for test_zero3.py: one interpreter imports DeepSpeed once and forks the ranks.

python zero3_driver.py OUT
"""

import json
import math
import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"
import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401 - what DeepSpeed imports at start, once for all ranks
import torch
from torch import Tensor

import gpt_core.model.gpt
from gpt_core import GPT, GPTConfig
from gpt_core.common.errors import InputError
from gpt_core.hardware.device import Numerics
from gpt_core.training.config import TrainConfig
from gpt_core.training.parallel.ranks import Ranks, join
from gpt_core.training.parallel.zero3 import ZeRO3

VOCAB, BLOCK, STEPS = 67, 16, 4
OUT = Path(sys.argv[1])


def settings_file(offload: bool) -> Path:
    """The path of DeepSpeed's settings file."""
    return OUT / f"offload-{offload}.json"


def write_settings() -> None:
    """Write settings that shard all parameters and keep none gathered, with and without offloading."""
    tight = (
        "param_persistence_threshold",
        "max_live_parameters",
        "max_reuse_distance",
        "prefetch_bucket_size",
    )
    for offload in (True, False):
        zero: dict[str, Any] = {"stage": 3} | {f"stage3_{name}": 0 for name in tight}
        if offload:
            zero |= {
                f"offload_{part}": {"device": "cpu", "pin_memory": True} for part in ("param", "optimizer")
            }
        settings_file(offload).write_text(
            json.dumps({"zero_optimization": zero, "bf16": {"enabled": "auto"}})
        )


def config(offload: bool = True) -> TrainConfig:
    """AdamW with weight decay, and gradient clipping that takes effect in every step."""
    return TrainConfig(
        optimizer="adamw", learning_rate=1e-2, weight_decay=0.1, grad_clip=0.5, parallel="deepspeed",
        deepspeed_config=str(settings_file(offload)),
    )  # fmt: skip


def build(tie: bool = True) -> GPT:
    """A small GPT whose parameters do not divide evenly among 3 ranks; if untied, its final norm is frozen."""
    torch.manual_seed(0)
    shape = GPTConfig(
        vocab_size=VOCAB, block_size=BLOCK, n_layer=2, n_head=2, n_kv_head=1, n_embd=18, head_dim=10, n_inner=23,
        qk_norm=True, tie_embeddings=tie, dropout=0.0, bos_id=None, eos_id=None, pad_id=None,
    )  # fmt: skip
    model = GPT(shape)
    model.norm.requires_grad_(tie)
    return model


def batch(step: int) -> list[tuple[Tensor, Tensor]]:
    """The micro-batches of a step: 6, or 12 in every third step, with different numbers of targets."""
    generator = torch.Generator().manual_seed(step)
    start = torch.randint(0, VOCAB, (12 if step % 3 == 0 else 6, 2, 1), generator=generator)
    ids = (start + 7 * torch.arange(BLOCK + 1)) % VOCAB
    targets = ids[..., 1:].clone()
    targets[
        torch.rand(targets.shape, generator=generator) < torch.rand(len(ids), 1, 1, generator=generator)
    ] = -100
    return list(zip(ids[..., :-1], targets, strict=True))


def factor(step: int) -> float:
    """The learning-rate factor of a step: linear increase, then linear decrease."""
    return min(step + 1, 2 * STEPS - step) / STEPS


def zero3_steps(parallel: ZeRO3, ranks: Ranks, steps: range) -> list[tuple[float, float]]:
    """Train; return the mean loss and the gradient norm of each step."""
    rows = []
    parallel.model.train()
    for step in steps:
        mine = batch(step)[ranks.rank :: ranks.world_size]
        total = torch.zeros(2)
        for i, (ids, targets) in enumerate(mine, 1):
            with parallel.micro_step(last=i == len(mine)):
                out = parallel.network(ids, targets=targets, logits=False)
                parallel.backward(out.loss_sum)
            total += torch.stack((out.loss_sum.detach(), out.n_targets))
        loss_sum, n_targets = ranks.sum(total)
        norm = parallel.update(n_targets, factor(step))
        rows.append((float(loss_sum / n_targets), float(norm)))
    return rows


def plain_steps(
    model: GPT, optimizer: torch.optim.Optimizer, steps: range, dtype: torch.dtype
) -> list[tuple[float, float]]:
    """The same in plain PyTorch in one process; only the GPT is from gpt_core."""
    rows = []
    for step in steps:
        loss_sum, n_targets = 0.0, 0
        for ids, targets in batch(step):
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                logits = model(ids).logits
            loss = torch.nn.functional.cross_entropy(
                logits.float().flatten(0, 1), targets.flatten(), reduction="sum"
            )
            loss.backward()
            loss_sum, n_targets = loss_sum + loss.item(), n_targets + int((targets != -100).sum())
        for p in model.parameters():
            if p.grad is not None:
                p.grad.div_(n_targets)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * factor(step)
        optimizer.step()
        optimizer.zero_grad()
        rows.append((loss_sum / n_targets, norm.item()))
    return rows


def adamw(model: GPT) -> torch.optim.AdamW:
    """AdamW that decays only matrices."""
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.99))


def state_of(model: GPT, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """A plain optimizer's state under the names used in checkpoints."""
    names = {p: name for name, p in model.named_parameters()}
    return {f"AdamW:{names[p]}:{key}": t for p, state in optimizer.state.items() for key, t in state.items()}


def plain(out: Path) -> None:
    """The reference: all steps, and the content of a checkpoint after half of them."""
    for tie in (True, False):
        for dtype in (torch.float32, torch.bfloat16):
            model = build(tie)
            optimizer = adamw(model)
            rows = plain_steps(model, optimizer, range(STEPS // 2), dtype)
            middle = {k: v.clone() for k, v in model.state_dict().items()}
            state = {k: v.clone() for k, v in state_of(model, optimizer).items()}
            rows += plain_steps(model, optimizer, range(STEPS // 2, STEPS), dtype)
            model.eval()
            with torch.no_grad():
                logits = model(batch(0)[0][0]).logits
            result = {"rows": rows, "middle": middle, "state": state, "logits": logits}
            torch.save(
                result | {"weights": model.state_dict(), "end": state_of(model, optimizer)},
                out / f"plain-{tie}-{dtype}.pt",
            )


def whole_run(
    ranks: Ranks, out: Path, *, tie: bool = True, offload: bool = True, dtype: str = "float32"
) -> None:
    """All steps; then shard sizes, an evaluation with the plain GPT, a further step and two errors."""
    model = build(tie)
    parallel = ZeRO3(model, config(offload), ranks, Numerics("cpu", dtype))
    parallel.load_optimizer_tensors({})
    rows = zero3_steps(parallel, ranks, range(STEPS))
    zero = parallel.engine.optimizer
    sizes = {
        "whole": sum(p.ds_numel for p in model.parameters()),
        "part": sum(p.ds_tensor.numel() for p in model.parameters()),
        "exp_avg": sum(state["exp_avg"].numel() for state in zero.state.values()),
        "exp_avg_sq": sum(state["exp_avg_sq"].numel() for state in zero.state.values()),
        "gathered between steps": sum(p.numel() for p in model.parameters()),
    }
    gathered: list[int] = []  # parameters present while a matrix of the second block is used
    hook = model.blocks[1].mlp.up.register_forward_pre_hook(
        lambda *_: gathered.append(sum(p.numel() for p in model.blocks.parameters()))
    )
    result: dict[str, Any] = {
        "sizes": sizes,
        "rows": rows,
        "weights": parallel.weights(),
        "state": parallel.optimizer_tensors(),
    }
    model.eval()
    with torch.no_grad():
        result["logits"] = model(batch(0)[0][0]).logits
        hidden = model(batch(0)[0][0], logits=False).hidden
        result["logits of hidden"] = model.logits(hidden)
    hook.remove()
    sizes |= {"gathered in a forward": max(gathered), "of it needed": model.blocks[1].mlp.up.weight.ds_numel}
    model.train()
    result["step after"] = zero3_steps(parallel, ranks, range(STEPS, STEPS + 1))
    with parallel.micro_step(last=True):
        parallel.backward(parallel.network(*batch(0)[0]).loss_sum * math.inf)
    result["norm of a broken step"] = float(parallel.update(torch.tensor(1.0), 1.0))
    try:
        parallel.load_optimizer_tensors({"Muon:blocks.0.attn.q.weight:momentum_buffer": torch.zeros(20, 18)})
    except InputError as error:
        result["refusal"] = str(error)
    torch.save(result, out / f"run-{tie}-{offload}-{dtype}-{ranks.world_size}-{ranks.rank}.pt")


def first_half(ranks: Ranks, out: Path) -> None:
    """The first half of the steps, and a checkpoint."""
    parallel = ZeRO3(build(), config(), ranks, Numerics("cpu"))
    assert parallel.optimizer_tensors() == {}
    rows = zero3_steps(parallel, ranks, range(STEPS // 2))
    saved = {"rows": rows, "weights": parallel.weights(), "state": parallel.optimizer_tensors()}
    torch.save(saved, out / f"half-{ranks.rank}.pt")


def second_half(ranks: Ranks, out: Path, origin: str) -> None:
    """The second half, from the checkpoint of `first_half` or of the plain loop."""
    if origin == "half":
        saved = torch.load(out / "half-0.pt")
        weights, state = saved["weights"], saved["state"]
    else:
        saved = torch.load(out / "plain-True-torch.float32.pt")
        weights, state = saved["middle"], saved["state"]
    model = build()
    model.load_state_dict(weights)
    parallel = ZeRO3(model, config(), ranks, Numerics("cpu"))
    parallel.load_optimizer_tensors(state)
    rows = zero3_steps(parallel, ranks, range(STEPS // 2, STEPS))
    result = {"rows": rows, "weights": parallel.weights(), "state": parallel.optimizer_tensors()}
    torch.save(result, out / f"from-{origin}-{ranks.world_size}-{ranks.rank}.pt")


def fork(world_size: int, function: Callable[[Ranks], None]) -> None:
    """Run `function` in `world_size` ranks, and wait for them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(world_size):
        if (child := os.fork()) == 0:
            status = 1
            try:
                torch.set_num_threads(1)
                os.environ |= {
                    "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size),
                    "LOCAL_WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                }  # fmt: skip
                with join("cpu") as ranks:
                    function(ranks)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    if any(statuses):
        sys.exit(f"a rank of {world_size} failed")


def main() -> None:
    """Run every scenario, one after the other."""
    gpt_core.model.gpt.LOSS_CHUNK = VOCAB * 20  # the loss in two chunks, recomputed in backward
    write_settings()
    fork(1, lambda ranks: plain(OUT))
    fork(2, lambda ranks: whole_run(ranks, OUT))
    fork(2, lambda ranks: whole_run(ranks, OUT, tie=False, offload=False))
    fork(2, lambda ranks: whole_run(ranks, OUT, dtype="bfloat16"))
    fork(2, lambda ranks: first_half(ranks, OUT))
    fork(2, lambda ranks: second_half(ranks, OUT, "half"))
    fork(3, lambda ranks: second_half(ranks, OUT, "plain"))


if __name__ == "__main__":
    main()
