"""Benchmark training speed: ours and nanoGPT, and the effect of each of our settings."""

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.nanogpt_peer import check_peer, rates, train_peer, write_bins
from benchmarks.own_process import in_own_process
from gpt_core.common.errors import InputError
from gpt_core.evaluation.report import print_report
from gpt_core.hardware.device import DeviceName, peak_memory, pick_device
from gpt_core.hub import run_folder
from gpt_core.training.pretraining.config import PretrainConfig
from gpt_core.training.pretraining.pretrain import pretrain

COLUMNS = ("system", "dtype", "compile", "threads", "tokens_per_s", "cpu_s_per_mtok", "mfu", "memory_gib")
OURS, MUON, PEER, PEER_BY_HAND = "ours", "ours, Muon", "nanoGPT", "nanoGPT, bf16 compiled"
# Changes are cumulative. "kernel" is not a key of the training config: it selects the allowed attention kernels.
LADDER: dict[str, dict[str, Any]] = {
    "fp32": {"dtype": "float32", "compile": "off", "tf32": False, "kernel": "math", "vocab_multiple": 1},
    "TF32": {"tf32": True},
    "bf16": {"dtype": "bfloat16"},
    "compile": {"compile": "on"},
    "flash attention": {"kernel": "any"},
    "padded vocabulary": {"vocab_multiple": 64},
}


def bench_train(
    *,
    data: str,
    peer: str | None = None,
    n_layer: int = 6,
    n_head: int = 6,
    n_embd: int = 384,
    block_size: int = 256,
    batch_size: int = 16,
    micro_batch_size: int | None = None,
    steps: int = 20,
    skip: int = 5,
    rounds: int = 2,
    device: DeviceName = "auto",
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    compile: Literal["auto", "on", "off"] = "auto",
    ladder: bool = False,
) -> None:
    """Measure training steps of GPT-2's architecture: ours with AdamW and with Muon and, with --peer, nanoGPT.

    nanoGPT runs its own train.py with default settings (on a CPU float32 and uncompiled, as its README says; on a GPU
    bfloat16 and compiled), and on a CPU a second time with bfloat16 autocast and compilation switched on. Each
    measurement runs in a separate process; the systems alternate for `rounds` rounds. Figures are medians over the
    steps after the first `skip` of all rounds, with data loading and logging, without checkpoints and evaluations.
    tokens_per_s: per wall second; cpu_s_per_mtok: CPU seconds of all threads per million tokens; mfu: model FLOPs
    divided by the device's peak; memory_gib: peak of the GPU, or of the process. Prints a table and ends with a line
    of JSON.

    Args:
        data: a folder with token shards, from scripts/prepare_data.py.
        peer: a checkout of nanoGPT.
        n_layer: transformer blocks.
        n_head: attention heads.
        n_embd: embedding width.
        block_size: context, in tokens.
        batch_size: sequences per step.
        micro_batch_size: sequences per forward, with gradient accumulation up to batch_size; by default batch_size.
        steps: steps per measurement.
        skip: first steps that are not counted, for compilation and warm-up.
        rounds: measurements per system.
        device: auto: cuda, else mps, else cpu.
        dtype: of ours; auto: the fastest on this machine.
        compile: of ours; auto: as training chooses.
        ladder: also measure ours with AdamW from plain float32 upwards, adding one setting at a time.
    """
    if not 0 <= skip < steps - 1:
        raise InputError(f"skip is {skip}; expected 0 to steps - 2, which is {steps - 2}.")
    if rounds < 1:
        raise InputError(f"rounds is {rounds}; expected at least 1.")
    checkout = None if peer is None else check_peer(peer)
    place = pick_device(device)
    shape = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "block_size": block_size}
    keys: dict[str, Any] = shape | {
        "data_dir": data, "graph": "gpt2", "batch_size": batch_size, "micro_batch_size": micro_batch_size,
        "max_iters": steps, "eval_interval": steps, "log_interval": 1, "warmup_iters": 1, "learning_rate": 1e-3,
        "device": place.type, "dtype": dtype, "compile": compile,
    }  # fmt: skip
    systems: dict[str, Callable[[Path], dict[str, Any]]] = {
        OURS: _system(keys | {"optimizer": "adamw"}),
    }
    if checkout is not None:
        accumulation = batch_size // (micro_batch_size or batch_size)
        theirs = shape | {
            "batch_size": micro_batch_size or batch_size, "gradient_accumulation_steps": accumulation,
            "max_iters": steps, "eval_interval": 10 * steps, "eval_iters": 1, "log_interval": 1, "dropout": 0.0,
            "device": place.type,
        }  # fmt: skip
        systems |= _peers(checkout, theirs, data, place)
    systems[MUON] = _system(keys | {"optimizer": "muon"})
    if ladder:
        systems |= {
            name: _system(keys | changes | {"optimizer": "adamw"})
            for name, changes in ladder_settings(place).items()
        }

    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in systems}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(rounds):
            for name, run in systems.items():
                print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
                measured[name].append(run(Path(scratch, f"{len(measured[name])}-{name}")))
    tokens = batch_size * block_size
    rows = [_row(name, runs, tokens, skip) for name, runs in measured.items()]
    print_report(rows, COLUMNS, _ratios({row["system"]: row for row in rows}))


def ladder_settings(device: torch.device) -> dict[str, dict[str, Any]]:
    """Name of each step of the ladder that `device` supports → all settings up to it."""
    changes: dict[str, Any] = {}
    ladder = {}
    for name, change in LADDER.items():
        if name != "TF32" or device.type == "cuda":
            changes = changes | change
            ladder[f"ladder: {name}"] = changes
    return ladder


def _system(keys: dict[str, Any]) -> Callable[[Path], dict[str, Any]]:
    return lambda folder: in_own_process(_ours, keys, folder)


def _peers(
    checkout: Path, keys: dict[str, Any], data: str, device: torch.device
) -> dict[str, Callable[[Path], dict[str, Any]]]:
    def run(settings: dict[str, Any], autocast: bool) -> Callable[[Path], dict[str, Any]]:
        def measure(folder: Path) -> dict[str, Any]:
            write_bins(data, folder / "data")
            theirs = keys | settings | {"dataset": str(folder / "data")}
            watched = train_peer(checkout, folder, theirs, autocast=autocast)
            shown = {"dtype": settings["dtype"], "compile": settings["compile"]}
            return shown | watched

        return measure

    modern = {"dtype": "bfloat16", "compile": True}
    if device.type == "cuda":
        return {PEER: run(modern, False)}
    return {PEER: run({"dtype": "float32", "compile": False}, False), PEER_BY_HAND: run(modern, True)}


def _ours(keys: dict[str, Any], out_dir: Path) -> dict[str, Any]:
    """Train in this process; the times are from the run's log, the settings from its checkpoint."""
    keys = dict(keys)
    kernel = sdpa_kernel(SDPBackend.MATH) if keys.pop("kernel", "any") == "math" else contextlib.nullcontext()
    with contextlib.redirect_stdout(sys.stderr), kernel:
        pretrain(PretrainConfig(out_dir=str(out_dir), **keys))
    rows = [json.loads(line) for line in (out_dir / "log.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "ms_per_step" in row]
    wall = np.cumsum([row["ms_per_step"] / 1000 for row in rows])
    newest = run_folder.latest(out_dir)
    assert newest is not None
    numerics = run_folder.load_state(newest)["numerics"]
    return {name: numerics[name] for name in ("dtype", "compile", "threads")} | {
        "steps": [(w, row["cpu_s"]) for w, row in zip(wall.tolist(), rows, strict=True)],
        "mfu": [row.get("mfu") for row in rows],
        "memory": peak_memory(pick_device(keys["device"])),
    }


def _row(name: str, runs: list[dict[str, Any]], tokens: int, skip: int) -> dict[str, Any]:
    """The medians over a system's rounds, and the throughput of each round."""
    each = [rates(run["steps"], tokens, skip) for run in runs]
    figures: dict[str, Any] = {key: float(np.median([figure[key] for figure in each])) for key in each[0]}
    mfu = [value for run in runs for value in run.get("mfu", [])[skip:] if value is not None]
    if mfu:
        figures["mfu"] = float(np.median(mfu))
    figures["memory_gib"] = max(run["memory"] for run in runs) / 2**30
    settings = {key: runs[0][key] for key in ("dtype", "compile", "threads") if key in runs[0]}
    return {"system": name} | settings | figures | {"rounds": [round(e["tokens_per_s"], 1) for e in each]}


def _ratios(rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    pairs = [(ours, peer) for ours in (OURS, MUON) for peer in (PEER, PEER_BY_HAND)]
    ladder = [name for name in rows if name.startswith("ladder")]
    pairs += [(OURS, MUON)[::-1], *((name, ladder[0]) for name in ladder[1:])]
    ratios = {}
    for ours, peer in pairs:
        if ours in rows and peer in rows:
            ratios[f"{ours}/{peer} tokens/s"] = rows[ours]["tokens_per_s"] / rows[peer]["tokens_per_s"]
    if PEER in rows:
        ratios[f"{OURS}/{PEER} CPU-s/token"] = rows[OURS]["cpu_s_per_mtok"] / rows[PEER]["cpu_s_per_mtok"]
    return ratios
