"""What LoRA changed: a file beside a checkpoint's merged model, and with `task.json` a small folder of its own.

lora.safetensors    low-rank updates and the task's head, by our names; metadata: init_from, n_layer, scale
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from gpt_core.common.errors import InputError
from gpt_core.formats.tensor_file import save_tensors
from gpt_core.training.trainable import merge_lora

LORA_FILE = "lora.safetensors"


@dataclass(frozen=True)
class Lora:
    """The weights that a training with LoRA changed, and the model that they belong to.

    Attributes:
        tensors: low-rank updates with peft's names, and the head's weights.
        init_from: the model that the training started from, as the user named it.
        n_layer: number of its first blocks that are used.
        scale: factor of the updates.
    """

    tensors: dict[str, Tensor]
    init_from: str
    n_layer: int
    scale: float

    def save(self, folder: Path) -> None:
        """Write the file into `folder`."""
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        values = {"init_from": self.init_from, "n_layer": self.n_layer, "scale": self.scale}
        # one key: safetensors writes several in any order, and equal trainings shall give equal files
        save_tensors(folder / LORA_FILE, tensors, {"lora": json.dumps(values)})

    @classmethod
    def load(cls, folder: Path) -> "Lora":
        """Read the file in `folder`, with all weights in float32.

        Raises:
            InputError: if it is damaged.
        """
        path = folder / LORA_FILE
        try:
            with safe_open(path, "pt") as file:
                values = json.loads((file.metadata() or {})["lora"])
                tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
            lora = cls(tensors, values["init_from"], int(values["n_layer"]), float(values["scale"]))
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise InputError(f"{path} cannot be read ({error}); copy the folder again.") from error
        if lora.n_layer < 1 or not math.isfinite(lora.scale):
            raise InputError(
                f"{path} has n_layer {lora.n_layer} and scale {lora.scale}; copy the folder again."
            )
        return lora

    def merged(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """A network's state dict with the updates added to its matrices, and the head replaced.

        Raises:
            InputError: if the updates belong to another network.
        """
        own = {name: tensor for name, tensor in self.tensors.items() if ".lora_" not in name}
        heads = {name for name in weights if name.startswith("head.")}
        fits = own.keys() == heads and all(own[name].shape == weights[name].shape for name in heads)
        for name in self.tensors.keys() - own.keys():
            matrix, _, rest = name.partition(".lora_")
            rank = len(self.tensors.get(f"{matrix}.lora_A.default.weight", ()))
            rows, columns = weights[f"{matrix}.weight"].shape if f"{matrix}.weight" in weights else (0, 0)
            expected = {"A.default.weight": (rank, columns), "B.default.weight": (rows, rank)}
            fits = fits and f"{matrix}.lora_B.default.weight" in self.tensors
            fits = fits and self.tensors[name].shape == expected.get(rest)
        if not fits:
            raise InputError(
                f"The low-rank updates do not match the first {self.n_layer} blocks of {self.init_from}; they were "
                "trained for another model."
            )
        return merge_lora(weights | self.tensors, self.scale)
