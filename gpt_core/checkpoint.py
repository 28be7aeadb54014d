"""Checkpoints: `out_dir/step-N/`, each one whole or not there.

    step-N/
      config.json, model.safetensors, tokenizer.json   a model folder that is usable alone
      optimizer.safetensors                            the optimizers' tensors, named optimizer:parameter:key
      state.json                                       step, data position, random states, sha256 of every file

The folder is written under a temporary name, `state.json` last, forced to the disk and renamed, so a kill at any
moment leaves the earlier checkpoints as they were. What a disk or a copy tears afterwards, the checksums find.
"""

import base64
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn as nn
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from gpt_core.errors import InputError
from gpt_core.files import atomic_folder, sha256_file

VERSION = 1


class Stateful(Protocol):
    """What knows its place in the data and can go back to it."""

    def state_dict(self) -> dict[str, Any]:
        """The place, as JSON can hold it."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a place."""
        ...


def save(
    out_dir: Path,
    step: int,
    *,
    save_model: Callable[[Path], None],
    model: nn.Module,
    optimizers: list[Optimizer],
    batches: Stateful,
    figures: dict[str, float],
) -> Path:
    """Write the checkpoint of `step`.

    Args:
        out_dir: the run's folder.
        step: steps done.
        save_model: writes a model folder that is usable alone.
        model: names the parameters of the optimizers.
        optimizers: their tensors are kept; rates and decays are the configuration's, not the checkpoint's.
        batches: the data position.
        figures: what the evaluation said; `val_loss` is what "best" goes by.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: if the disk does not take it; nothing of it is left, and earlier checkpoints are as they were.
    """
    path = out_dir / f"step-{step}"
    with atomic_folder(path) as folder:
        try:
            save_model(folder)
            save_file(_optimizer_tensors(model, optimizers), folder / "optimizer.safetensors")
        except SafetensorError as error:  # what it makes of a full disk
            raise OSError(f"The checkpoint {path} could not be written: {error}") from error
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        state = {
            "version": VERSION,
            "step": step,
            "figures": figures,
            "data": batches.state_dict(),
            "rng": _rng_state(),
            "manifest": {str(p.relative_to(folder)): sha256_file(p) for p in files},
        }
        state["checksum"] = _checksum(state)
        (folder / "state.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    return path


def restore(
    path: Path, *, model: nn.Module, optimizers: list[Optimizer], batches: Stateful
) -> tuple[int, dict[str, float]]:
    """Bring optimizers, data position and random states back to where `path` was saved; the weights are the caller's.

    Returns:
        The number of steps done, and the figures of the evaluation then.

    Raises:
        InputError: if the checkpoint is torn, or its optimizer state belongs to other parameters or other data.
    """
    state = read_state(path)
    _load_optimizer_tensors(path / "optimizer.safetensors", model, optimizers)
    batches.load_state_dict(state["data"])
    _set_rng_state(state["rng"])
    return state["step"], state["figures"]


def read_state(path: Path) -> dict[str, Any]:
    """The content of `state.json`, after every file of the checkpoint has been held against its checksum.

    Raises:
        InputError: saying what is torn.
    """
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if not isinstance(state, dict) or state.get("checksum") != _checksum(state):
            raise InputError(f"{path} is torn: the checksum of state.json does not hold.")
        if state["version"] != VERSION:
            raise InputError(f"{path} is a checkpoint of version {state['version']}; expected {VERSION}.")
        for name, expected in state["manifest"].items():
            if sha256_file(path / name) != expected:
                raise InputError(f"{path} is torn: the checksum of {name} does not hold.")
    except FileNotFoundError as error:
        raise InputError(f"{path} is torn: {Path(error.filename).name} is missing.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is torn: state.json cannot be read ({error}).") from error
    return state


def latest(out_dir: str | Path) -> Path | None:
    """The newest whole checkpoint of a run, or None; says on stderr which torn ones it passed over."""
    return _first_whole(reversed(_steps(Path(out_dir))))


def best_or_latest(out_dir: str | Path) -> Path | None:
    """The whole checkpoint of a run with the lowest validation loss, the newest if none was evaluated; else None."""

    def validation_loss(path: Path) -> float:
        try:
            return json.loads((path / "state.json").read_text(encoding="utf-8"))["figures"]["val_loss"]
        except (OSError, ValueError, LookupError, TypeError):  # torn: read_state says so when its turn comes
            return float("inf")

    newest_first = reversed(_steps(Path(out_dir)))
    return _first_whole(sorted(newest_first, key=validation_loss))


def prune(out_dir: Path, keep: int) -> None:
    """Delete all checkpoints but the `keep` newest and the best."""
    best = best_or_latest(out_dir)
    for path in _steps(out_dir)[:-keep]:
        if path != best:
            # Renamed first: a kill while deleting must not leave a torn folder under a checkpoint's name.
            shutil.rmtree(path.rename(path.with_name(f".{path.name}.old")))


def clear_leftovers(out_dir: Path, step: int) -> None:
    """Make a run's folder fit to go on from `step`: nothing half-written, nothing newer that is torn.

    What a kill left of checkpoints being written or deleted is deleted; a checkpoint after `step`, which `latest`
    passed over, becomes `torn-step-N`, so that it cannot push a whole one out when the run prunes.
    """
    for path in out_dir.glob(".step-*"):
        shutil.rmtree(path)
    for path in _steps(out_dir):
        if _number(path) > step:
            aside = path.with_name(f"torn-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)


def _steps(out_dir: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first, whole or not."""
    found = [p for p in out_dir.glob("step-*") if re.fullmatch(r"step-\d+", p.name) and p.is_dir()]
    return sorted(found, key=_number)


def _number(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _first_whole(paths: Iterable[Path]) -> Path | None:
    for path in paths:
        try:
            read_state(path)
        except InputError as error:
            print(f"Skipping a checkpoint: {error}", file=sys.stderr)
        else:
            return path
    return None


def _checksum(state: dict[str, Any]) -> str:
    """sha256 over everything in `state` but the checksum itself."""
    rest = {key: value for key, value in state.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _optimizer_tensors(model: nn.Module, optimizers: list[Optimizer]) -> dict[str, Tensor]:
    """The optimizers' state as one flat mapping "optimizer:parameter:key" → tensor."""
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    return {
        f"{type(optimizer).__name__}:{names[p]}:{key}": tensor
        for optimizer in optimizers
        for p, state in optimizer.state.items()
        for key, tensor in state.items()
    }


def _load_optimizer_tensors(path: Path, model: nn.Module, optimizers: list[Optimizer]) -> None:
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    saved: dict[str, dict[str, Tensor]] = {}
    for full, tensor in load_file(path).items():
        owner, _, key = full.rpartition(":")
        # A copy of its own is aligned as a fresh tensor is; mapped memory may make kernels round differently.
        saved.setdefault(owner, {})[key] = tensor.clone()
    for optimizer in optimizers:
        owners = [
            f"{type(optimizer).__name__}:{names[p]}" for g in optimizer.param_groups for p in g["params"]
        ]
        content = optimizer.state_dict()
        content["state"] = {i: saved.pop(owner) for i, owner in enumerate(owners) if owner in saved}
        optimizer.load_state_dict(content)
    if saved:
        optimizer_name, parameter = next(iter(saved)).split(":")
        raise InputError(
            f"{path} holds {optimizer_name}'s state of {parameter}, which this run does not train with that optimizer; "
            "resume with the same model and optimizer, or choose another out_dir."
        )


def _rng_state() -> dict[str, str]:
    """torch's random states; nothing else in training draws random numbers."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return {device: base64.b64encode(s.numpy().tobytes()).decode() for device, s in states.items()}


def _set_rng_state(states: dict[str, str]) -> None:
    for device, text in states.items():
        state = torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
        if device == "cpu":
            torch.set_rng_state(state)
        elif device == "cuda" and torch.cuda.is_available():
            torch.cuda.set_rng_state(state)
        elif device == "mps" and torch.backends.mps.is_available():
            torch.mps.set_rng_state(state)
