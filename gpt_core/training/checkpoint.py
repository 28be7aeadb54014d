"""Checkpoints: `out_dir/step-N/`, written atomically.

    step-N/
      config.json, model.safetensors, tokenizer.json   a complete model folder
      optimizer.safetensors                            the optimizers' tensors, named optimizer:parameter:key
      state.json                                       step, data position, numerics, sha256 of every file but README.md
      README.md                                        the model card; users may edit it

Checkpoints contain no random state: the random numbers of a step depend only on (seed, step, rank). They contain no
state of single ranks either, so training can resume with any number of ranks and any kind of parallelism.

The folder is written under a temporary name, `state.json` last, then fsynced and renamed, so a kill at any time leaves
the earlier checkpoints unchanged. The checksums detect later damage by a disk or a copy.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import load_file
from torch import Tensor

from gpt_core.common.errors import InputError
from gpt_core.common.files import atomic_folder, sha256_file
from gpt_core.formats.card import README, add_progress
from gpt_core.formats.tensor_file import save_tensors
from gpt_core.hardware.device import Numerics
from gpt_core.hub.run_folder import CHECKPOINT_VERSION, OPTIMIZER, load_state, lock_run_folder, state_checksum
from gpt_core.training.parallel.parallel import Parallel
from gpt_core.training.parallel.ranks import Ranks


class Stateful(Protocol):
    """An object whose position in the data can be saved and restored."""

    def state_dict(self) -> dict[str, Any]:
        """The position, as JSON-serialisable values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a position that `state_dict` returned."""
        ...


@contextmanager
def lock_out_dir(out_dir: str, ranks: Ranks) -> Iterator[None]:
    """Lock a run's folder on rank 0 against other trainings; all ranks must call this together.

    Raises:
        InputError: on every rank, as `lock_run_folder`.
    """
    with ExitStack() as held:
        ranks.on_main(lambda: held.enter_context(lock_run_folder(Path(out_dir))))
        yield


def check_identity(state: dict[str, Any], identity: dict[str, Any]) -> None:
    """Check that the saved position of a stream is of the same data and settings.

    Args:
        state: what a checkpoint saved.
        identity: the settings of this run, by name.

    Raises:
        InputError: naming the first that differs.
    """
    for key, mine in identity.items():
        if state.get(key) != mine:
            raise InputError(
                f"The checkpoint was made with {key} = {state.get(key)}, but this run has {mine}; resume with the same "
                "configuration and data, or choose another out_dir."
            )


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
    """Write the checkpoint of `step`. All ranks must call it together; rank 0 writes.

    Args:
        out_dir: the run's folder.
        step: number of completed steps.
        save_model: writes a complete model folder, from all weights by name.
        parallel: the model and its optimizers. Learning rates and decays are not saved; the configuration sets them.
        batches: the data position.
        figures: metrics of the evaluation; the lowest `val_loss` determines the best checkpoint.
        best: state of early stopping.
        numerics: device, dtype, threads and compilation.
        ranks: the processes.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: if writing fails; the incomplete folder is deleted, earlier checkpoints are unchanged.
    """
    path = out_dir / f"step-{step}"
    weights, optimizer = parallel.weights(), parallel.optimizer_tensors()

    def write() -> Path:
        with atomic_folder(path) as folder:
            save_model(folder, weights)
            save_tensors(folder / OPTIMIZER, optimizer)
            add_progress(folder, step, figures)
            files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / README)
            state = {
                "version": CHECKPOINT_VERSION,
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
    """Restore the optimizer state and the data position from the checkpoint `path`; the caller loads the weights.

    Returns:
        The content of `state.json`.

    Raises:
        InputError: if the optimizer state does not match the model's parameters, or the position the data.
    """
    state = load_state(path)
    parallel.load_optimizer_tensors(load_file(path / OPTIMIZER))
    batches.load_state_dict(state["data"])
    return state
