"""Run nanoGPT's unmodified train.py from a checkout, with instrumentation.

nanoGPT's configurator executes the given config file inside train.py. That file wraps the torch functions that
train.py calls once per step or checkpoint, to record the clocks.
"""

import json
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt_core.common.errors import InputError
from gpt_core.data.shards import Shard, open_split
from gpt_core.tokenizer.tokenizer import Tokenizer

INSTRUMENTATION = """
import atexit as _atexit, json as _json, os as _os, resource as _resource, sys as _sys, time as _time
_clip, _save, _seed = torch.nn.utils.clip_grad_norm_, torch.save, torch.manual_seed
_steps, _saves, _idle = [], [], [0.0]

def _watched_clip(*args, **kwargs):
    _steps.append((_time.perf_counter(), _time.process_time()))
    return _clip(*args, **kwargs)

def _watched_save(content, path):
    begun = _time.process_time()
    _saves.append({"step": content["iter_num"], "cpu_s": begun - _steps[0][1] - _idle[0]})
    kept = {"model": content["model"], "model_args": content["model_args"]}
    _save(kept, _os.path.join(_os.path.dirname(path), f"step-{content['iter_num']}.pt"))
    _idle[0] += _time.process_time() - begun

def _peak():  # of this process; getrusage begins with the peak of the process that started it
    try:
        with open("/proc/self/status") as f:
            return 1024 * int(f.read().partition("VmHWM:")[2].split()[0])
    except OSError:
        return _resource.getrusage(_resource.RUSAGE_SELF).ru_maxrss * (1 if _sys.platform == "darwin" else 1024)

def _report():
    memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _peak()
    with open(_os.path.join(out_dir, "watched.json"), "w") as f:
        threads = torch.get_num_threads()
        _json.dump({"steps": _steps, "saves": _saves, "memory": memory, "threads": threads}, f)

torch.nn.utils.clip_grad_norm_, torch.save = _watched_clip, _watched_save
torch.manual_seed = lambda seed: _seed(SEED)
_atexit.register(_report)
"""
# On a CPU train.py uses nullcontext() instead of autocast; this replaces it by bfloat16 autocast.
CPU_AUTOCAST = 'nullcontext = lambda: torch.autocast("cpu", torch.bfloat16)\n'

EVALUATE = """
import json, sys
import numpy as np, torch
from model import GPT, GPTConfig
data, block_size, device, *paths = sys.argv[1:]
ids, block_size = torch.from_numpy(np.fromfile(data, dtype=np.uint16).astype(np.int64)), int(block_size)
losses = []
for path in paths:
    saved = torch.load(path, map_location="cpu")
    model = GPT(GPTConfig(**saved["model_args"]))
    model.load_state_dict({k.removeprefix("_orig_mod."): v for k, v in saved["model"].items()})
    model.eval().to(device)
    full = (len(ids) - 1) // block_size * block_size
    rows = zip(ids[:full].view(-1, block_size).split(256), ids[1 : full + 1].view(-1, block_size).split(256))
    rows = [*rows, (ids[full:-1][None], ids[full + 1 :][None])]
    total = 0.0
    with torch.no_grad():
        for x, y in rows:
            if y.numel():
                total += model(x.to(device), y.to(device))[1].item() * y.numel()
    losses.append(total / (len(ids) - 1))
print(json.dumps(losses))
"""


def check_peer(peer: str | Path) -> Path:
    """Check that `peer` is a checkout of nanoGPT; returns its absolute path.

    Raises:
        InputError: if a file of nanoGPT is missing.
    """
    folder = Path(peer).resolve()
    for name in ("train.py", "model.py", "configurator.py"):
        if not (folder / name).is_file():
            raise InputError(f"{peer} has no {name}; --peer expects a checkout of nanoGPT.")
    return folder


def write_bins(data: str | Path, folder: Path) -> None:
    """Write our shards' splits in nanoGPT's format: train.bin, val.bin, and meta.pkl with the vocabulary size.

    Raises:
        InputError: if the ids do not fit into 16 bits.
    """
    vocab_size = Tokenizer.from_pretrained(data).vocab_size
    if vocab_size > 2**16:
        raise InputError(
            f"{data} has a vocabulary of {vocab_size}; nanoGPT stores ids in 16 bits, expected at most 65536."
        )
    folder.mkdir(parents=True)
    for split in ("train", "val"):
        with open(folder / f"{split}.bin", "wb") as f:
            for shard in open_split(data, split):
                _write_ids(shard, f)
    if vocab_size != 50257:  # without a meta.pkl nanoGPT uses GPT-2's vocabulary, padded
        (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": vocab_size}))


def _write_ids(shard: Shard, file: Any) -> None:
    for start in range(0, len(shard.tokens), 2**22):
        file.write(shard.tokens[start : start + 2**22].astype("<u2").tobytes())


def train_peer(
    peer: Path, out_dir: Path, keys: dict[str, Any], *, seed: int = 1337, autocast: bool = False
) -> dict[str, Any]:
    """Run nanoGPT's train.py to the end.

    Args:
        peer: the checkout.
        out_dir: absolute path of the folder to create, for checkpoints (step-N.pt) and the printed output.
        keys: nanoGPT's configuration keys; "dataset" may be an absolute folder.
        seed: replaces train.py's fixed seed of 1337.
        autocast: use bfloat16 autocast on a CPU, which train.py does not offer.

    Returns:
        {"steps": [(wall seconds, CPU seconds) at each step's clipping], "saves": [{"step", "cpu_s": CPU seconds since
        the first step, without saving}], "memory": peak bytes of the GPU, or of the process, "threads"}.

    Raises:
        InputError: if train.py fails.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    config = out_dir / "config.py"
    config.write_text(INSTRUMENTATION.replace("SEED", str(seed)) + (CPU_AUTOCAST if autocast else ""))
    arguments = [f"--{key}={value}" for key, value in (keys | {"out_dir": str(out_dir)}).items()]
    _run(peer, [str(peer / "train.py"), str(config), *arguments], out_dir / "printed.txt")
    return json.loads((out_dir / "watched.json").read_text())


def evaluate_peer(
    peer: Path, out_dir: Path, val_bin: Path, block_size: int, steps: Sequence[int]
) -> list[float]:
    """Losses of the checkpoints over all tokens of a split except the first, computed by nanoGPT's model.py.

    The windows of block_size do not overlap, and the last may be shorter, as in our evaluation.
    """
    paths = [str(out_dir / f"step-{step}.pt") for step in steps]
    printed = out_dir / "evaluated.txt"
    _run(peer, ["-c", EVALUATE, str(val_bin), str(block_size), "cpu", *paths], printed)
    return json.loads(printed.read_text().splitlines()[-1])


def _run(peer: Path, arguments: list[str], printed: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(peer), "PYTHONDONTWRITEBYTECODE": "1"}
    errors = printed.with_suffix(".errors.txt")
    with open(printed, "w") as out, open(errors, "w") as err:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=peer, env=environment, stdout=out, stderr=err, check=False
        )
    if done.returncode:
        last = (errors.read_text().strip().splitlines() or ["no message"])[-1]
        raise InputError(f"nanoGPT in {peer} fails with status {done.returncode}: {last[:300]}")


def rates(steps: Sequence[Sequence[float]], tokens: int, skip: int) -> dict[str, float]:
    """Tokens per wall second and CPU seconds per million tokens: medians over the steps after the first `skip`."""
    wall, cpu = (np.diff([step[i] for step in steps])[skip:] for i in (0, 1))
    seconds = float(np.median(wall)) if len(wall) else math.nan
    return {"tokens_per_s": tokens / seconds, "cpu_s_per_mtok": 1e6 * float(np.median(cpu)) / tokens}
