"""Benchmark training quality per CPU-second: ours and nanoGPT at its README's CPU size, over several seeds."""

import contextlib
import dataclasses
import itertools
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.nanogpt_peer import check_peer, evaluate_peer, train_peer, write_bins
from benchmarks.own_process import in_own_process
from gpt_core.common.errors import InputError
from gpt_core.common.files import atomic_write
from gpt_core.common.presets import read_preset
from gpt_core.data.batches import Batches, Windows
from gpt_core.data.shards import open_split
from gpt_core.evaluation.report import print_report
from gpt_core.model.gpt import GPT
from gpt_core.tokenizer.tokenizer import Tokenizer
from gpt_core.training.loop import train
from gpt_core.training.numerics import choose_numerics
from gpt_core.training.parallel.ranks import Ranks
from gpt_core.training.pretraining.config import PretrainConfig
from gpt_core.training.pretraining.pretrain import pretrain
from gpt_core.training.validation import evaluator, next_token_loss

SystemName = Literal[
    "nanoGPT", "nanoGPT tuned", "gpt2", "qwen3", "gpt2 zero", "gpt2 rotary", "gpt2 zero rotary"
]
PEERS = {  # all other settings: its README's command for a CPU
    "nanoGPT": {"learning_rate": 1e-3, "min_lr": 1e-4},
    "nanoGPT tuned": {"learning_rate": 3e-3, "min_lr": 3e-4},
}
OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("shakespeare_char_cpu_gpt2.yaml", {}),
    "qwen3": ("shakespeare_char_cpu.yaml", {}),
    "gpt2 zero": ("shakespeare_char_cpu_gpt2.yaml", {"init": "zero"}),
    "gpt2 rotary": ("shakespeare_char_cpu_gpt2.yaml", {"position": "rope"}),
    "gpt2 zero rotary": ("shakespeare_char_cpu_gpt2.yaml", {"init": "zero", "position": "rope"}),
}
COLUMNS = ("system", "seeds", "loss", "lowest", "highest", "cpu_s", "cpu_s_to_target")

Curve = list[tuple[int, float, float]]  # (step, CPU seconds of training so far, validation loss)


def bench_learn(
    *,
    data: str,
    peer: str | None = None,
    seeds: tuple[int, ...] = (1337, 1338, 1339),
    systems: tuple[SystemName, ...] | None = None,
    steps: int = 2000,
    eval_interval: int = 250,
    target: float = 1.77,
    presets: str = "configs",
    out: str | None = None,
) -> None:
    """Train each system with several seeds at nanoGPT's CPU size: validation loss, and CPU-seconds to a target loss.

    4 layers, 4 heads, width 128, context 64, batch 12, one thread. Systems: nanoGPT's own train.py with its README's
    settings and with a learning rate of 3e-3 ("tuned"); gpt2 and qwen3, our presets shakespeare_char_cpu_gpt2 and
    shakespeare_char_cpu; and gpt2 with zero-initialised residual projections, with rotary positions, and with both.
    loss: mean over seeds after the last step, on the whole validation split in non-overlapping windows (nanoGPT's
    computed by its own model.py). CPU-seconds are those of training, without evaluations and checkpoints. Prints a
    table and ends with a line of JSON.

    Args:
        data: a folder with character shards, from scripts/prepare_data.py.
        peer: a checkout of nanoGPT, needed for its two systems.
        seeds: seeds of the initial weights and the data order.
        systems: systems to train; by default all, or without --peer all of ours.
        steps: training steps, also the length of the learning-rate decay.
        eval_interval: steps between evaluations.
        target: target loss; the time to reach it is interpolated linearly between evaluations.
        presets: folder of our presets.
        out: folder for the result of each run; runs that already have a result are skipped.
    """
    if not seeds:
        raise InputError("--seeds is empty; expected one or more integers.")
    checkout = None if peer is None else check_peer(peer)
    chosen: Sequence[str] = systems or [n for n in (*PEERS, *OURS) if checkout is not None or n in OURS]
    if checkout is None and (needed := [name for name in chosen if name in PEERS]):
        raise InputError(f"{needed[0]} runs from a checkout of nanoGPT; name it with --peer.")
    configs = {
        name: read_preset(PretrainConfig, Path(presets, OURS[name][0])) for name in chosen if name in OURS
    }
    curves: dict[str, list[Curve]] = {name: [] for name in chosen}
    with tempfile.TemporaryDirectory() as scratch, one_thread():
        results = Path(out or scratch)
        results.mkdir(parents=True, exist_ok=True)
        for seed, name in itertools.product(seeds, chosen):
            if name in PEERS:
                settings: dict[str, Any] = peer_settings(name, steps, eval_interval) | {"seed": seed}
            else:
                settings = our_settings(configs[name], name, steps, eval_interval) | {"seed": seed}
            done = results / f"{name.replace(' ', '_')}-{seed}.json"
            curve = _read(done, settings)
            if curve is None:
                print(f"training {name}, seed {seed}", file=sys.stderr, flush=True)
                folder = Path(scratch, done.stem)
                if checkout is not None and name in PEERS:
                    curve = learn_peer(checkout, settings, data, folder)
                else:
                    curve = in_own_process(learn, settings | {"data_dir": data, "out_dir": str(folder)})
                atomic_write(done, json.dumps({"settings": settings, "curve": curve}, indent=1) + "\n")
            curves[name].append(curve)
    rows = {name: summarise(name, curves[name], target) for name in chosen}
    print_report(list(rows.values()), COLUMNS, ratios(rows, target))


def peer_settings(name: str, steps: int, eval_interval: int) -> dict[str, Any]:
    """nanoGPT's configuration: config/train_shakespeare_char.py with its README's changes for a CPU."""
    return PEERS[name] | {
        "n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "batch_size": 12, "dropout": 0.0,
        "gradient_accumulation_steps": 1, "max_iters": steps, "lr_decay_iters": steps, "beta2": 0.99,
        "warmup_iters": min(100, steps // 2), "eval_interval": eval_interval, "eval_iters": 1, "device": "cpu",
        "dtype": "float32", "compile": False, "always_save_checkpoint": True,
    }  # fmt: skip


def learn_peer(checkout: Path, settings: dict[str, Any], data: str, folder: Path) -> Curve:
    """Train nanoGPT and evaluate its checkpoints."""
    write_bins(data, folder / "data")
    keys = {key: value for key, value in settings.items() if key != "seed"}
    watched = train_peer(checkout, folder, keys | {"dataset": str(folder / "data")}, seed=settings["seed"])
    at = [save["step"] for save in watched["saves"]]
    losses = evaluate_peer(checkout, folder, folder / "data" / "val.bin", settings["block_size"], at)
    return [(s["step"], s["cpu_s"], loss) for s, loss in zip(watched["saves"], losses, strict=True)]


def our_settings(preset: PretrainConfig, name: str, steps: int, eval_interval: int) -> dict[str, Any]:
    """A preset with the system's changes, on one thread. PretrainConfig rejects position "rope"; `learn` handles it."""
    keys = dataclasses.asdict(preset) | {"max_iters": steps, "eval_interval": eval_interval}
    keys |= {"warmup_iters": min(preset.warmup_iters, steps // 2), "threads": 1, "device": "cpu"}
    return {key: value for key, value in keys.items() if key not in ("out_dir", "data_dir")} | OURS[name][1]


def learn(settings: dict[str, Any]) -> Curve:
    """Train one of our systems in this process; returns the curve from its log."""
    rotary = settings["position"] == "rope"
    config = PretrainConfig(**settings | ({"position": None} if rotary else {}))
    with contextlib.redirect_stdout(sys.stderr):
        if rotary:
            _train_unsaved(config)
        else:
            pretrain(config)
    curve, cpu_s = [], 0.0
    for line in Path(config.out_dir, "log.jsonl").read_text().splitlines():
        row = json.loads(line)
        cpu_s = row.get("cpu_s", cpu_s)
        if "val_loss" in row:
            curve.append((row["step"], cpu_s, row["val_loss"]))
    return curve


def _train_unsaved(config: PretrainConfig) -> None:
    """Train a graph with rotary positions instead of its own; not saved, since no file format describes it."""
    tokenizer = Tokenizer.from_pretrained(config.tokenizer or config.data_dir)
    torch.manual_seed(config.seed)
    shape = dataclasses.replace(config.gpt_config(tokenizer), position="rope")
    model = GPT(shape, config.init)
    training, validation = (
        Windows(open_split(config.data_dir, split), shape.block_size) for split in ("train", "val")
    )
    batches = Batches(training, config.batch_size, config.micro_batch_size, config.seed)
    numerics = choose_numerics(config, torch.device("cpu"), 1, None)
    torch.set_num_threads(numerics.threads)

    def save_nothing(folder: Path, weights: dict[str, Tensor]) -> None:
        pass

    with contextlib.closing(batches):
        train(
            model,
            batches,
            next_token_loss,
            evaluator(validation, Ranks(), numerics),
            config,
            save_model=save_nothing,
            numerics=numerics,
        )


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Context manager: processes started in the block compute on one thread."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before


def cpu_seconds_to(target: float, curve: Curve) -> float | None:
    """CPU seconds until the loss first reached `target`, interpolated between evaluations; None if it never did."""
    for (_, cpu_before, before), (_, cpu_s, loss) in itertools.pairwise(curve):
        if before > target >= loss:
            return cpu_before + (cpu_s - cpu_before) * (before - target) / (before - loss)
    return None


def _read(path: Path, settings: dict[str, Any]) -> Curve | None:
    """The curve of an earlier run with the same settings, if there is one."""
    if not path.exists():
        return None
    saved = json.loads(path.read_text())
    return saved["curve"] if saved["settings"] == settings else None


def summarise(name: str, curves: list[Curve], target: float) -> dict[str, Any]:
    """The row of a system: means over its seeds."""
    losses = [curve[-1][2] for curve in curves]
    reached = [cpu_s for curve in curves if (cpu_s := cpu_seconds_to(target, curve)) is not None]
    return {
        "system": name,
        "seeds": len(curves),
        "loss": statistics.fmean(losses),
        "lowest": min(losses),
        "highest": max(losses),
        "cpu_s": statistics.fmean(curve[-1][1] for curve in curves),
        "target": target,
        "cpu_s_to_target": statistics.fmean(reached) if len(reached) == len(curves) else None,
        "curve": [
            [statistics.fmean(column) for column in zip(*points, strict=True)]
            for points in zip(*curves, strict=True)
        ],
    }


def ratios(rows: dict[str, dict[str, Any]], target: float) -> dict[str, float]:
    """Each of our systems divided by each of nanoGPT's: losses, and CPU seconds to the target."""
    found = {}
    for ours, peer in itertools.product(OURS, PEERS):
        if ours in rows and peer in rows:
            found[f"{ours}/{peer} loss"] = rows[ours]["loss"] / rows[peer]["loss"]
            mine = rows[ours]["cpu_s_to_target"]
            theirs = rows[peer]["cpu_s_to_target"]
            if mine is not None and theirs is not None:
                found[f"{ours}/{peer} CPU-s to {target}"] = mine / theirs
            elif mine is not None:  # the peer did not reach the target in its whole run
                found[f"{ours}/{peer} CPU-s to {target}, at most"] = mine / rows[peer]["cpu_s"]
    return found
