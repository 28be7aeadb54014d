"""The training loop: gradients, other loss functions, resuming, stopping, and rejected settings."""

import itertools
import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from gpt_core.common.errors import InputError
from gpt_core.data.batches import IGNORED, Batches, Windows
from gpt_core.data.shards import Shard
from gpt_core.hardware.device import Numerics
from gpt_core.hub import run_folder
from gpt_core.model.config import GPTConfig
from gpt_core.model.gpt import GPT
from gpt_core.training.config import TrainConfig
from gpt_core.training.loop import train
from gpt_core.training.optim import learning_rate_factor
from gpt_core.training.parallel.ranks import Ranks
from gpt_core.training.parallel.torch_parallel import TorchParallel
from gpt_core.training.validation import evaluator, next_token_loss

TIMES = ("ms_per_step", "targets_per_s", "cpu_s")
SHAPE = GPTConfig(
    vocab_size=11, block_size=8, n_layer=2, n_head=2, n_kv_head=1, n_embd=16, head_dim=8, n_inner=24
)


def tokens(n: int) -> Windows:
    """Windows over two random shards; the last window of each is shorter and has fewer targets."""
    ids = np.random.default_rng(0).integers(0, SHAPE.vocab_size, n).astype(np.uint16)
    return Windows(
        [Shard(Path("a"), ids[: n // 3], None), Shard(Path("b"), ids[n // 3 :], None)], SHAPE.block_size
    )


def config(out_dir: Path, **keys: Any) -> TrainConfig:
    return TrainConfig(
        **({"out_dir": str(out_dir), "max_iters": 4, "warmup_iters": 1, "log_interval": 1} | keys)
    )


def run(
    model: GPT,
    settings: TrainConfig,
    micro_batch_size: int = 4,
    loss_function: Callable[[nn.Module, Any], tuple[Tensor, Tensor]] = next_token_loss,
    batch_size: int = 4,
) -> dict[str, float]:
    """Train on random tokens, resuming the latest checkpoint in out_dir."""
    windows = tokens(200)
    batches = Batches(windows, batch_size, micro_batch_size, settings.seed)
    resume = run_folder.latest(settings.out_dir)
    if resume is not None:
        model.load_state_dict(GPT.from_pretrained(resume).state_dict())
    return train(
        model,
        batches,
        loss_function,
        evaluator(windows),
        settings,
        save_model=model.save_pretrained,
        resume=resume,
    )


def fresh(dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(**(vars(SHAPE) | {"dropout": dropout}))).to(dtype)


def content(path: Path) -> dict[str, bytes]:
    """Everything in a checkpoint that a further step depends on."""
    state = json.loads((path / "state.json").read_text())
    files = {name: (path / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors")}
    return files | {key: json.dumps(state[key]).encode() for key in ("step", "data", "best", "numerics")}


def test_the_gradient_does_not_depend_on_the_micro_batch_size(tmp_path: Path) -> None:
    gradients: dict[int, list[Tensor]] = {}
    for micro_batch_size in (12, 6, 3, 1):
        model, taken = fresh(dtype=torch.float64), []

        def keep(optimizer: Any, *_: Any, model: GPT = model, taken: list[Tensor] = taken) -> None:
            taken.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))

        hook = register_optimizer_step_pre_hook(keep)
        settings = config(
            tmp_path / str(micro_batch_size), max_iters=3, optimizer="adamw", learning_rate=1e-4, grad_clip=0
        )
        run(model, settings, micro_batch_size, batch_size=12)
        hook.remove()
        gradients[micro_batch_size] = taken
    assert len(gradients[12]) == 3
    # the reference: one mean over all targets of the first step at once
    model = fresh(dtype=torch.float64)
    ((ids, targets),) = next(Batches(tokens(200), 12, 12, seed=1337))
    assert (targets == IGNORED).any()
    F.cross_entropy(model(ids).logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED).backward()
    mean = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert (gradients[12][0] - mean).abs().max() < 1e-14
    for micro_batch_size in (6, 3, 1):
        for a, b in zip(gradients[12], gradients[micro_batch_size], strict=True):
            assert (a - b).abs().max() < 1e-10


def test_gradients_of_ranks_sum_to_that_of_one_rank(tmp_path: Path) -> None:
    def gradient(world_size: int, micro_batch_size: int) -> Tensor:
        model, count = fresh(dtype=torch.float64), 0
        for rank in range(world_size):
            for micro_batch in next(Batches(tokens(200), 12, micro_batch_size, 1, rank, world_size)):
                loss, n = next_token_loss(model, micro_batch)
                loss.backward()
                count += int(n)
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]) / count

    for world_size, micro_batch_size in ((2, 3), (4, 3), (3, 1)):
        assert (gradient(1, 12) - gradient(world_size, micro_batch_size)).abs().max() < 1e-10


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_an_interrupted_run_ends_in_the_same_bits(tmp_path: Path, optimizer: Any) -> None:
    keys: dict[str, Any] = {"max_iters": 9, "eval_interval": 4, "optimizer": optimizer, "keep_checkpoints": 9}
    straight = run(fresh(dropout=0.2), config(tmp_path / "straight", **keys), micro_batch_size=2)

    stopped = config(tmp_path / "stopped", **keys)
    calls = 0

    def interrupt(model: nn.Module, micro_batch: Any) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += model.training
        if calls == 2 * 6:  # in the second micro-batch of the sixth step
            os.kill(os.getpid(), signal.SIGINT)
        return next_token_loss(model, micro_batch)

    with pytest.raises(KeyboardInterrupt):
        run(fresh(dropout=0.2), stopped, 2, interrupt)
    assert (
        run_folder.latest(tmp_path / "stopped") == tmp_path / "stopped" / "step-6"
    )  # the step was finished and saved
    again = run(fresh(dropout=0.2), stopped, micro_batch_size=2)
    assert again == straight
    for step in (4, 8, 9):
        assert content(tmp_path / "straight" / f"step-{step}") == content(
            tmp_path / "stopped" / f"step-{step}"
        )

    def logged(folder: str) -> list[dict[str, float]]:
        rows = [json.loads(line) for line in (tmp_path / folder / "log.jsonl").read_text().splitlines()]
        return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]

    assert logged("stopped") == logged("straight")
    assert [row["step"] for row in logged("straight") if "val_loss" in row] == [4, 8, 9]


def test_a_killed_run_resumes_from_its_last_checkpoint(tmp_path: Path) -> None:
    """A kill at step 7, after step 4's checkpoint: later log lines and temporary folders are removed, bits agree."""
    keys: dict[str, Any] = {"max_iters": 8, "eval_interval": 4}
    run(fresh(), config(tmp_path / "straight", **keys))
    run(fresh(), config(tmp_path / "killed", **(keys | {"max_iters": 4, "lr_decay_iters": 8})))
    with open(tmp_path / "killed" / "log.jsonl", "a") as f:
        f.write('{"step": 5, "loss": 1.0}\n{"step": 6, "loss": 1.0}\n{"step": 7, "lo')
    (tmp_path / "killed" / ".step-8.abcd").mkdir()
    run(fresh(), config(tmp_path / "killed", **keys))
    assert content(tmp_path / "straight" / "step-8") == content(tmp_path / "killed" / "step-8")
    steps = [
        json.loads(line)["step"] for line in (tmp_path / "killed" / "log.jsonl").read_text().splitlines()
    ]
    assert steps == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8]  # 4 and 8: a step and an evaluation
    assert not list((tmp_path / "killed").glob(".step-*"))


def test_sigterm_saves_and_exits_with_143(tmp_path: Path) -> None:
    def terminate(model: nn.Module, micro_batch: Any) -> tuple[Tensor, Tensor]:
        os.kill(os.getpid(), signal.SIGTERM)
        return next_token_loss(model, micro_batch)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as exit_info:
        run(fresh(), config(tmp_path), loss_function=terminate)
    assert exit_info.value.code == 143
    assert run_folder.latest(tmp_path) == tmp_path / "step-1"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_nan_loss_stops_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    calls = 0

    def breaks(model: nn.Module, micro_batch: Any) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += model.training
        loss, count = next_token_loss(model, micro_batch)
        return loss * (math.nan if calls >= 3 else 1), count

    with pytest.raises(
        InputError, match=r"not a finite number at step 3, whose batch is windows 8 to 11 of epoch 0"
    ):
        run(fresh(), config(tmp_path, eval_interval=2), loss_function=breaks)
    path = run_folder.latest(tmp_path)
    assert path == tmp_path / "step-2"
    assert all(p.isfinite().all() for p in GPT.from_pretrained(path).parameters())


def test_a_nan_evaluation_stops_before_it_is_saved(tmp_path: Path) -> None:
    losses, model = iter([2.0, math.nan]), fresh()
    with pytest.raises(InputError, match="not a finite number at step 2"):
        train(
            model,
            Batches(tokens(200), 4, 4, seed=1),
            next_token_loss,
            lambda model: {"val_loss": next(losses)},
            config(tmp_path, eval_interval=1, keep_checkpoints=1),
            save_model=model.save_pretrained,
        )
    assert run_folder.latest(tmp_path) == tmp_path / "step-1"


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_an_overflow_skips_the_step_of_every_optimizer(tmp_path: Path, dtype: str) -> None:
    """If a scaled float16 gradient overflows, the step is skipped for both AdamW and Muon."""
    model = Towers()
    model.out.weight.data.fill_(1)
    parallel = TorchParallel(model, config(tmp_path, grad_clip=0), Ranks(), Numerics(dtype=dtype))
    for overflows in (True, False):
        before = [p.detach().clone() for p in model.parameters()]
        parallel.backward(sum((p**2).sum() for p in model.parameters()))  # type: ignore[arg-type]
        if overflows and dtype == "float16":
            assert model.out.weight.grad is not None
            model.out.weight.grad[0, 0] = math.nan
        parallel.update(torch.tensor(4), 0.1)
        moved = [not torch.equal(old, p) for old, p in zip(before, model.parameters(), strict=True)]
        assert moved == [dtype == "float32" or not overflows] * 3
    assert parallel.scaler.get_scale() == (0.5 if dtype == "float16" else 1)
    # A resumed run continues with this scale; a run in another dtype uses no scale.
    for again, scale in ((dtype, parallel.scaler.get_scale()), ("bfloat16", 1)):
        resumed = TorchParallel(Towers(), config(tmp_path), Ranks(), Numerics(dtype=again))
        resumed.load_optimizer_tensors(parallel.optimizer_tensors())
        assert resumed.scaler.get_scale() == scale


def test_a_tiny_gpt_learns(tmp_path: Path) -> None:
    text = np.tile(np.random.default_rng(1).permutation(SHAPE.vocab_size), 40).astype(np.uint16)
    windows = Windows([Shard(Path("a"), text, None)], SHAPE.block_size)
    model = fresh()
    settings = config(tmp_path, max_iters=100, warmup_iters=5, log_interval=100, learning_rate=0.01)
    first = evaluator(windows)(model)["val_loss"]
    assert first == pytest.approx(math.log(SHAPE.vocab_size), abs=0.1)
    figures = train(
        model,
        Batches(windows, 8, 8, seed=1),
        next_token_loss,
        evaluator(windows),
        settings,
        save_model=model.save_pretrained,
    )
    assert figures["val_loss"] < 0.25 * first


class Towers(nn.Module):
    """A model that is not a GPT: an encoder of vectors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.Linear(6, 12, bias=False)])
        self.out = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.out(torch.tanh(self.blocks[0](x))), dim=-1)


class Pairs:
    """Batches of (queries, documents), one micro-batch a step."""

    def __init__(self) -> None:
        self.position = 0

    def __next__(self) -> list[tuple[Tensor, Tensor]]:
        self.position += 1
        queries = torch.randn(16, 6, generator=torch.Generator().manual_seed(self.position))
        return [(queries, queries.flip(1))]

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]

    def describe(self, step: int) -> str:
        return f"the pairs of seed {step}"


def contrastive(queries: Tensor, documents: Tensor) -> Tensor:
    """InfoNCE with the batch's other documents as negatives, summed over the queries."""
    return F.cross_entropy(20 * queries @ documents.T, torch.arange(len(queries)), reduction="sum")


def test_another_loss_function_may_run_its_own_backward(tmp_path: Path) -> None:
    def at_once(model: nn.Module, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
        return contrastive(model(pair[0]), model(pair[1])), len(pair[0])

    def grad_cache(model: nn.Module, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
        """GradCache (Gao et al. 2021): first the gradients of the vectors, then those of the model in chunks."""
        chunks = [chunk for side in pair for chunk in side.split(5)]
        with torch.no_grad():
            vectors = torch.cat([model(chunk) for chunk in chunks])
        vectors.requires_grad_()
        loss = contrastive(*vectors.chunk(2))
        loss.backward()
        assert vectors.grad is not None
        for chunk, gradient in zip(chunks, vectors.grad.split([len(c) for c in chunks]), strict=True):
            model(chunk).backward(gradient)
        return loss.detach(), len(pair[0])

    def evaluate(model: nn.Module) -> dict[str, float]:
        assert not model.training
        assert not torch.is_grad_enabled()
        ((queries, documents),) = next(Pairs())
        return {"val_loss": contrastive(model(queries), model(documents)).item() / len(queries)}

    weights, figures = [], []
    for name, loss_function in (("at_once", at_once), ("grad_cache", grad_cache)):
        model = Towers()
        with torch.no_grad():
            untrained = evaluate(model.eval())
        figures.append(
            train(
                model,
                Pairs(),
                loss_function,
                evaluate,
                config(tmp_path / name, max_iters=30, warmup_iters=3, optimizer="adamw", learning_rate=0.02),
                save_model=lambda folder, weights: save_file(weights, folder / "towers.safetensors"),
            )
        )
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        assert figures[-1]["val_loss"] < 0.5 * untrained["val_loss"]
    assert torch.allclose(weights[0], weights[1], atol=1e-4)
    best = run_folder.best_or_latest(tmp_path / "grad_cache")
    assert best is not None
    assert (best / "towers.safetensors").exists()


def test_the_cosine_schedule_warms_up_decays_and_ends_at_min_lr(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"max_iters": 12, "warmup_iters": 3, "lr_decay_iters": 10, "learning_rate": 0.1}
    run(fresh(), config(tmp_path, **keys, min_lr=0.02))
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    rates = [row["lr"] for row in rows if "lr" in row]
    cosine = [0.02 + 0.08 * 0.5 * (1 + math.cos(math.pi * i / 7)) for i in range(7)]
    assert rates == pytest.approx([0.025, 0.05, 0.075, *cosine, 0.02, 0.02])


def test_wsd_stays_at_the_peak_and_decays_late(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"max_iters": 12, "warmup_iters": 2, "lr_decay_iters": 10, "learning_rate": 0.1}
    run(fresh(), config(tmp_path, **keys, schedule="wsd", decay_fraction=0.4, min_lr=0.0))
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    rates = [row["lr"] for row in rows if "lr" in row]
    peak = 0.1
    assert rates == pytest.approx([peak / 3, 2 * peak / 3, *[peak] * 5, 0.075, 0.05, 0.025, 0, 0])


def test_with_wsd_the_decay_may_begin_where_the_warmup_ends(tmp_path: Path) -> None:
    for fraction, warmup in ((0.2, 88), (1.0, 0), (0.1, 99)):
        settings = config(
            tmp_path, schedule="wsd", max_iters=110, warmup_iters=warmup, decay_fraction=fraction
        )
        factors = [learning_rate_factor(settings, step) for step in range(111)]
        assert max(factors) == 1
        steps = [b - a for a, b in itertools.pairwise(factors)]
        longest = max(1 / (warmup + 1), 0.9 / (fraction * 110))  # of the warm-up, of the decay
        assert max(map(abs, steps)) < longest + 1e-9


def test_the_step_of_a_nan_loss_is_named_if_it_is_noticed_later(tmp_path: Path) -> None:
    calls = 0

    def breaks(model: nn.Module, micro_batch: Any) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += 1
        loss, count = next_token_loss(model, micro_batch)
        return loss * (math.nan if calls == 3 else 1), count

    with pytest.raises(
        InputError, match=r"at step 3 \(noticed at step 5\), whose batch is windows 8 to 11 of epoch 0"
    ):
        run(fresh(), config(tmp_path, max_iters=20, log_interval=5, eval_interval=20), loss_function=breaks)


def test_early_stopping_ends_the_training_and_stays_in_effect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = iter([3.0, 2.0, 2.5, 2.1, 1.0, 0.5])

    def evaluate(model: nn.Module) -> dict[str, float]:
        return {"val_loss": next(losses)}

    def go() -> dict[str, float]:
        model, windows = fresh(), tokens(200)
        resume = run_folder.latest(tmp_path)
        return train(
            model, Batches(windows, 4, 4, 1), next_token_loss, evaluate,
            config(tmp_path, max_iters=12, eval_interval=2, patience=2),
            save_model=model.save_pretrained, resume=resume,
        )  # fmt: skip

    assert go() == go()  # the second time there is nothing left to do
    said = (
        "stopped early: the last 2 evaluations had no lower val_loss than 2.0000; increase patience to go on"
    )
    assert capsys.readouterr().out.count(said) == 2
    latest = run_folder.latest(tmp_path)
    assert latest == tmp_path / "step-8"  # 2.5 and 2.1 are not lower than 2.0
    assert run_folder.best_or_latest(tmp_path) == tmp_path / "step-4"


def test_early_stopping_without_a_finite_evaluation_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = fresh()
    train(
        model, Batches(tokens(200), 4, 4, 1), next_token_loss, lambda model: {"val_loss": math.inf},
        config(tmp_path, max_iters=12, eval_interval=1, patience=2), save_model=model.save_pretrained,
    )  # fmt: skip
    assert "the last 2 evaluations had no lower val_loss than inf" in capsys.readouterr().out
    assert run_folder.best_or_latest(tmp_path) == tmp_path / "step-2"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"max_iters": 0}, "max_iters is 0"),
        ({"learning_rate": -1.0}, "learning_rate is -1"),
        ({"warmup_iters": 4}, "warmup_iters is 4; it must be below max_iters, which is 4"),
        ({"warmup_iters": 4, "lr_decay_iters": 3}, "it must be below lr_decay_iters, which is 3"),
        ({"out_dir": ""}, "out_dir is empty"),
        ({"learning_rate": float("inf")}, "learning_rate is inf; expected a finite number"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 10**20}, "seed is 100000000000000000000"),
        ({"threads": 100_000}, "threads is 100000; expected 1 to 1024"),
        ({"min_lr": 1.0}, "min_lr is 1.0"),
        ({"beta2": 1.0}, "beta1, beta2 are 0.9, 1.0"),
        ({"decay_fraction": 0.0}, "decay_fraction is 0.0; expected more than 0"),
        (
            {"schedule": "wsd", "max_iters": 110, "warmup_iters": 89},
            "warmup_iters is 89, .* the decay begins at step 88 of 110",
        ),
        ({"threads": 0}, "threads is 0"),
        ({"cpu_offload": True}, "cpu_offload needs --parallel fsdp2, not ddp"),
        ({"parallel": "deepspeed", "optimizer": "adamw"}, "deepspeed_config is None; give deepspeed_config"),
        ({"deepspeed_config": "x.json"}, "with --parallel deepspeed and only with it"),
        (
            {"parallel": "deepspeed", "deepspeed_config": "x.json"},
            "optimizer is muon, which needs whole matrices",
        ),
    ],
)
def test_values_out_of_range_name_their_key(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config(**({"out_dir": tmp_path} | keys))
