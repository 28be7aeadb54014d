"""Trainable weights of a GPT: all, the last blocks, low-rank updates (LoRA), or biases (BitFit)."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from gpt_core.common.errors import InputError
from gpt_core.common.extras import extra
from gpt_core.model.gpt import GPT
from gpt_core.training.config import TrainConfig

LORA_MATRICES = r".*\.(attn\.[qkvo]|mlp\.(up|gate|down))"


@dataclass(frozen=True)
class TrainableConfig(TrainConfig):
    """Configuration of a training that may leave a part of a GPT's weights unchanged."""

    trainable: Literal["full", "last-k", "lora", "bitfit"] = "full"
    """full: all weights; last-k: the last blocks and the final norm; lora: low-rank updates; bitfit: biases."""
    last_k: int = 2
    """For last-k: number of last blocks to train."""
    lora_rank: int = 16
    """For lora: rank of the updates."""
    lora_alpha: int = 32
    """For lora: updates are scaled by lora_alpha / lora_rank."""
    dropout: float = 0.0
    """Dropout probability of the GPT in training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("last_k", "lora_rank", "lora_alpha"):
            if (value := getattr(self, name)) < 1:
                raise InputError(f"{name} is {value}; expected at least 1.")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout is {self.dropout}; expected at least 0 and below 1.")

    @property
    def lora_scale(self) -> float:
        """Factor of the low-rank updates."""
        return self.lora_alpha / self.lora_rank


def choose_trainable(gpt: GPT, config: TrainableConfig, depth: int, source: str, whole: bool = False) -> None:
    """Set requires_grad of a GPT's weights as configured; the final norm and an output layer are left frozen.

    LoRA: Hu et al. 2021, by peft, on every matrix of the blocks. BitFit: Ben Zaken et al. 2022, as in SGPT.

    Args:
        gpt: the GPT.
        config: which weights are trained.
        depth: number of blocks on which the loss depends; weights of later blocks stay frozen.
        source: name of the GPT in messages.
        whole: with trainable: full, train everything, the final norm and an output layer included.

    Raises:
        InputError: for bitfit with a GPT without biases, or a last_k above the number of blocks.
    """
    gpt.requires_grad_(False)
    if config.trainable == "full":
        for part in gpt.children() if whole else [gpt.wte, gpt.wpe, *gpt.blocks[:depth]]:
            if part is not None:
                part.requires_grad_(True)
    elif config.trainable == "last-k":
        if config.last_k > depth:
            raise InputError(
                f"last_k is {config.last_k}; expected at most {depth}, the number of blocks that the result depends on."
            )
        gpt.blocks[depth - config.last_k : depth].requires_grad_(True)
    elif config.trainable == "bitfit":
        biases = [
            p for block in gpt.blocks[:depth] for n, p in block.named_parameters() if n.endswith("bias")
        ]
        if not biases:
            raise InputError(
                f"trainable is bitfit, but {source} has no biases to train; give lora, last-k or full."
            )
        for bias in biases:
            bias.requires_grad_(True)
    else:
        inject_lora(gpt.blocks[:depth], config)


def inject_lora(blocks: nn.Module, config: TrainableConfig) -> None:
    """Add low-rank updates, initialised to zero, to every matrix of `blocks`.

    Raises:
        InputError: if peft is not installed.
    """
    with extra("train"):
        from peft import LoraConfig, inject_adapter_in_model
    lora = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=LORA_MATRICES)
    inject_adapter_in_model(lora, blocks)


def merge_lora(weights: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Merge low-rank updates into the weights: W + scale · B·A.

    Args:
        weights: a state dict, with or without updates and peft's names.
        scale: factor of the updates, alpha / rank.
    """
    merged = {}
    for name, tensor in weights.items():
        if ".lora_" in name:
            continue
        plain = name.replace(".base_layer.", ".")
        matrix = plain.removesuffix(".weight")
        if f"{matrix}.lora_A.default.weight" in weights:
            a, b = (weights[f"{matrix}.lora_{x}.default.weight"] for x in "AB")
            tensor = tensor + scale * (b @ a)
        merged[plain] = tensor
    return merged
