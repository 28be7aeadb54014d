"""A training run's folder: which `step-N` checkpoints are whole, which one is best or latest, and its lock."""

import hashlib
import json
import math
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

from gpt_core.common.errors import InputError
from gpt_core.common.files import sha256_file

VERSION = 2


def load_state(path: Path) -> dict[str, Any]:
    """The content of `state.json`, of a checkpoint that is known to be whole."""
    return json.loads((path / "state.json").read_text(encoding="utf-8"))


def read_state(path: Path) -> dict[str, Any]:
    """The content of `state.json`, after every file of the checkpoint has been held against its checksum.

    Raises:
        InputError: saying what is torn.
    """
    try:
        state = load_state(path)
        if not isinstance(state, dict) or state.get("checksum") != state_checksum(state):
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
            loss = float(load_state(path)["figures"]["val_loss"])
        except (OSError, ValueError, LookupError, TypeError):  # torn: read_state says so when its turn comes
            return math.inf
        return math.inf if math.isnan(loss) else loss  # a NaN would upset the order of all

    newest_first = reversed(_steps(Path(out_dir)))
    return _first_whole(sorted(newest_first, key=validation_loss))


def prune(out_dir: Path, keep: int) -> None:
    """Delete all checkpoints but the `keep` newest and the best."""
    best = best_or_latest(out_dir)
    for path in _steps(out_dir)[:-keep]:
        if path != best:
            # Renamed first: a kill while deleting must not leave a torn folder under a checkpoint's name.
            shutil.rmtree(path.rename(path.with_name(f".{path.name}.old")))


@contextmanager
def alone_in(out_dir: Path) -> Iterator[None]:
    """Hold a run's folder, which is made if need be, against any other training; the end of the process lets go of it.

    Raises:
        InputError: if another training holds it.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(out_dir / ".lock", timeout=0):
            yield
    except filelock.Timeout:
        raise InputError(
            f"Another training is at work in {out_dir}; wait for it, stop it, or choose another out_dir."
        ) from None


def prepare(out_dir: Path, step: int) -> None:
    """Make a run's folder, or make it fit to go on from `step`: nothing half-written, nothing newer that is torn.

    What a kill left of checkpoints being written or deleted is deleted; a checkpoint after `step`, which `latest`
    passed over, becomes `torn-step-N`, so that it cannot push a whole one out when the run prunes.

    Raises:
        InputError: if a newer one is whole: another training wrote it after `latest` had looked.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    for path in out_dir.glob(".step-*"):
        shutil.rmtree(path)
    for path in _steps(out_dir):
        if _number(path) > step:
            if _is_whole(path):
                raise InputError(f"Another training has just written {path}; start again to go on from it.")
            aside = path.with_name(f"torn-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)


def _steps(out_dir: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first, whole or not."""
    found = [p for p in out_dir.glob("step-*") if re.fullmatch(r"step-\d+", p.name) and p.is_dir()]
    return sorted(found, key=_number)


def _number(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _is_whole(path: Path) -> bool:
    try:
        read_state(path)
    except InputError:
        return False
    return True


def _first_whole(paths: Iterable[Path]) -> Path | None:
    for path in paths:
        try:
            read_state(path)
        except InputError as error:
            print(f"Skipping a checkpoint: {error}", file=sys.stderr)
        else:
            return path
    return None


def state_checksum(state: dict[str, Any]) -> str:
    """sha256 over everything in `state` but the checksum itself."""
    rest = {key: value for key, value in state.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
