"""The folder of a training run: its intact, best and latest `step-N` checkpoints, and its lock."""

import hashlib
import json
import math
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import filelock

from gpt_core.common.errors import InputError
from gpt_core.common.files import sha256_file

CHECKPOINT_VERSION = 2
OPTIMIZER = "optimizer.safetensors"  # the largest file, which only training reads


def load_state(path: Path) -> dict[str, Any]:
    """The content of `state.json`, without checking the checkpoint."""
    return json.loads((path / "state.json").read_text(encoding="utf-8"))


def read_state(path: Path, verify: Literal["all", "model", "nothing"] = "all") -> dict[str, Any]:
    """The content of `state.json`, after its own checksum was verified.

    Args:
        path: the checkpoint.
        verify: files whose checksums are verified, too. all: what training resumes from; model: without the
            optimizer's tensors; nothing: no file is read but state.json.

    Raises:
        InputError: if a file is missing or damaged; names it.
    """
    try:
        state = load_state(path)
        if not isinstance(state, dict) or state.get("checksum") != state_checksum(state):
            raise InputError(f"{path} is damaged: state.json does not match its checksum.")
        if state["version"] != CHECKPOINT_VERSION:
            raise InputError(
                f"{path} is a checkpoint of version {state['version']}; expected {CHECKPOINT_VERSION}."
            )
        for name, expected in state["manifest"].items():
            if verify == "nothing" or (verify == "model" and name == OPTIMIZER):
                continue
            if sha256_file(path / name) != expected:
                raise InputError(f"{path} is damaged: {name} does not match its checksum.")
    except FileNotFoundError as error:
        raise InputError(f"{path} is damaged: {Path(error.filename).name} is missing.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged: state.json cannot be read ({error}).") from error
    return state


def latest(out_dir: str | Path) -> Path | None:
    """The newest checkpoint of a run that is intact as a whole, or None; reports damaged ones on stderr."""
    return _first_intact(reversed(_steps(Path(out_dir))), "all")


def best_or_latest(out_dir: str | Path) -> Path | None:
    """The checkpoint with the lowest validation loss, or the newest if none was evaluated; None if there is none.

    Those whose model is damaged are skipped and reported on stderr. The optimizer's tensors are not read.
    """
    return _first_intact(_best_first(Path(out_dir)), "model")


def _best_first(out_dir: Path) -> list[Path]:
    """All checkpoints by their validation loss, those without one last; the newest first among equals."""

    def validation_loss(path: Path) -> float:
        try:
            loss = float(load_state(path)["figures"]["val_loss"])
        except (OSError, ValueError, LookupError, TypeError):  # damaged: `read_state` refuses it
            return math.inf
        return math.inf if math.isnan(loss) else loss  # NaN has no place in a sorted order

    newest_first = reversed(_steps(out_dir))
    return sorted(newest_first, key=validation_loss)


def prune(out_dir: Path, keep: int) -> None:
    """Delete all checkpoints except the `keep` newest and the best, by their state.json alone."""
    best = _first_intact(_best_first(out_dir), "nothing")
    for path in _steps(out_dir)[:-keep]:
        if path != best:
            # Renamed first: a kill during the deletion must not leave a damaged folder with a checkpoint's name.
            shutil.rmtree(path.rename(path.with_name(f".{path.name}.old")))


@contextmanager
def lock_run_folder(out_dir: Path) -> Iterator[None]:
    """Lock a run's folder against other trainings, and create it if it is missing; the lock ends with the process.

    Raises:
        InputError: if another training has locked it.
    """
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(
            f"out_dir is {out_dir}, but that is a file, or is inside one; name a folder."
        ) from None
    try:
        with filelock.FileLock(out_dir / ".lock", timeout=0):
            yield
    except filelock.Timeout:
        raise InputError(
            f"Another training is running in {out_dir}; wait for it, stop it, or choose another out_dir."
        ) from None


def prepare(out_dir: Path, step: int) -> None:
    """Create a run's folder, or clean it up before training resumes from `step`.

    Partly written and partly deleted checkpoints are deleted. Damaged checkpoints after `step` are renamed to
    `torn-step-N`, so that `prune` does not count them among the newest.

    Raises:
        InputError: if a checkpoint after `step` is intact, so another training wrote it since `latest` was called.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    for path in out_dir.glob(".step-*"):
        shutil.rmtree(path)
    for path in _steps(out_dir):
        if _number(path) > step:
            if _is_intact(path):
                raise InputError(
                    f"Another training has just written {path}; restart this one to resume from it."
                )
            aside = path.with_name(f"torn-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)


def _steps(out_dir: Path) -> list[Path]:
    """All checkpoint folders of a run, damaged ones included, oldest first."""
    found = [p for p in out_dir.glob("step-*") if re.fullmatch(r"step-\d+", p.name) and p.is_dir()]
    return sorted(found, key=_number)


def _number(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _is_intact(path: Path) -> bool:
    try:
        read_state(path)
    except InputError:
        return False
    return True


def _first_intact(paths: Iterable[Path], verify: Literal["all", "model", "nothing"]) -> Path | None:
    for path in paths:
        try:
            read_state(path, verify)
        except InputError as error:
            print(f"Skipping a checkpoint: {error}", file=sys.stderr)
        else:
            return path
    return None


def state_checksum(state: dict[str, Any]) -> str:
    """sha256 of `state` without its key `checksum`, in hex."""
    rest = {key: value for key, value in state.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
