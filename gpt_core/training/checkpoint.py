"""Checkpoints: `out_dir/step-N/`, each one whole or not there.

    step-N/
      config.json, model.safetensors, tokenizer.json   a model folder that is usable alone
      optimizer.safetensors                            the optimizers' tensors, named optimizer:parameter:key
      state.json                                       step, data position, number formats, sha256 of every file
      README.md                                        the model card, for people: anybody may write on in it

There are no random states in it: what is random in a step follows from (seed, step, rank). Nor anything of one rank's
alone, so any number of ranks can go on from it, however they share the model.

The folder is written under a temporary name, `state.json` last, forced to the disk and renamed, so a kill at any
moment leaves the earlier checkpoints as they were. What a disk or a copy tears afterwards, the checksums find.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gpt_core.common.files import atomic_folder, sha256_file
from gpt_core.formats.card import README, add_progress
from gpt_core.hardware.device import Numerics
from gpt_core.hub.run_folder import VERSION, load_state, state_checksum
from gpt_core.training.parallel.parallel import Parallel
from gpt_core.training.parallel.ranks import Ranks


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
    save_model: Callable[[Path, dict[str, Tensor]], None],
    parallel: Parallel,
    batches: Stateful,
    figures: dict[str, float],
    best: dict[str, float],
    numerics: Numerics,
    ranks: Ranks,
) -> Path:
    """Write the checkpoint of `step`. Every rank must call; rank 0 writes.

    Args:
        out_dir: the run's folder.
        step: steps done.
        save_model: writes a model folder that is usable alone, from all weights.
        parallel: the model and its optimizers; rates and decays are the configuration's, not the checkpoint's.
        batches: the data position.
        figures: what the evaluation said; `val_loss` is what "best" goes by.
        best: what early stopping remembers.
        numerics: how sums were rounded.
        ranks: the processes.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: if the disk does not take it; nothing of it is left, and earlier checkpoints are as they were.
    """
    path = out_dir / f"step-{step}"
    weights, optimizer = parallel.weights(), parallel.optimizer_tensors()

    def write() -> Path:
        with atomic_folder(path) as folder:
            try:
                save_model(folder, weights)
                save_file(optimizer, folder / "optimizer.safetensors")
            except SafetensorError as error:  # what it makes of a full disk
                raise OSError(f"The checkpoint {path} could not be written: {error}") from error
            add_progress(folder, step, figures)
            files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / README)
            state = {
                "version": VERSION,
                "step": step,
                "figures": figures,
                "best": best,
                "data": batches.state_dict(),
                "numerics": numerics.as_dict(),
                "manifest": {str(p.relative_to(folder)): sha256_file(p) for p in files},
            }
            state["checksum"] = state_checksum(state)
            (folder / "state.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
        return path

    return ranks.on_main(write)


def restore(path: Path, parallel: Parallel, batches: Stateful) -> dict[str, Any]:
    """Bring optimizers and data position back to where `path` was saved; the weights are the caller's.

    Returns:
        The content of its `state.json`.

    Raises:
        InputError: if its optimizer state belongs to other parameters or other data.
    """
    state = load_state(path)
    parallel.load_optimizer_tensors(load_file(path / "optimizer.safetensors"))
    batches.load_state_dict(state["data"])
    return state
