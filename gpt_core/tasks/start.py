"""The GPT that fine-tuning starts from, what is trained of it, and the weights of a checkpoint."""

from dataclasses import replace
from pathlib import Path

import torch.nn as nn
from torch import Tensor

from gpt_core.common.errors import InputError
from gpt_core.hub.locate import resolve
from gpt_core.model.gpt import GPT
from gpt_core.tasks.config import FinetuneConfig
from gpt_core.tasks.folder import load_body
from gpt_core.tasks.lora import LORA_FILE, Lora
from gpt_core.tokenizer.tokenizer import Tokenizer
from gpt_core.training.trainable import choose_trainable


def load_gpt(config: FinetuneConfig) -> tuple[GPT, Tokenizer]:
    """The GPT of `init_from`, or of the task folder there, with its first blocks, and its tokenizer.

    Raises:
        InputError: for an n_layer above the number of blocks.
    """
    folder = resolve(config.init_from)
    if config.lm_weight > 0 or config.task == "chat":  # refuses a task's folder, which has no output layer
        start, tokenizer = GPT.from_pretrained(folder), Tokenizer.from_pretrained(folder)
    else:
        start, tokenizer = load_body(folder)
    n_layer = start.config.n_layer if config.n_layer is None else config.n_layer
    if n_layer > start.config.n_layer:
        raise InputError(
            f"n_layer is {n_layer}; the n_layer of {config.init_from} is {start.config.n_layer}."
        )
    start.keep_blocks(n_layer)
    shape = replace(
        start.config,
        dropout=config.dropout,
        tie_embeddings=start.config.tie_embeddings or not (config.lm_weight or config.task == "chat"),
    )
    gpt = GPT(shape)
    gpt.load_state_dict({name: w for name, w in start.state_dict().items() if name in gpt.state_dict()})
    return gpt, tokenizer


def set_trainable(gpt: GPT, config: FinetuneConfig) -> None:
    """Set requires_grad of the GPT's weights as configured; with LoRA, its matrices are replaced.

    Raises:
        InputError: as `choose_trainable`.
    """
    choose_trainable(gpt, config, gpt.config.n_layer, config.init_from)
    if config.trainable in ("full", "last-k"):
        gpt.norm.requires_grad_(True)
    if gpt.head is not None and config.task == "chat":
        gpt.head.requires_grad_(config.trainable == "full")


def changed_by_lora(
    network: nn.Module, weights: dict[str, Tensor], config: FinetuneConfig, n_layer: int
) -> Lora:
    """What a training with LoRA changes, among a network's full `weights`."""
    learning = {name for name, p in network.named_parameters() if p.requires_grad}
    tensors = {name: w for name, w in weights.items() if name in learning}
    return Lora(tensors, config.init_from, n_layer, config.lora_scale)


def load_trained(network: nn.Module, saved: dict[str, Tensor], path: Path, config: FinetuneConfig) -> None:
    """Load the weights of a checkpoint into `network`.

    Args:
        network: the network to train.
        saved: the checkpoint's weights, with low-rank updates merged.
        path: the checkpoint.
        config: the configuration.

    Raises:
        InputError: if names or shapes of the weights do not match the configuration.
    """
    mine = network.state_dict()
    if config.trainable == "lora":  # the GPT in the checkpoint has the updates merged; keep that of init_from
        if not (path / LORA_FILE).is_file():
            raise InputError(f"{path} was trained without LoRA; choose another out_dir.")
        saved = Lora.load(path).tensors
        learning = {name for name, p in network.named_parameters() if p.requires_grad}
        mine = {name: w for name, w in mine.items() if name in learning}
    for name in sorted(mine.keys() | saved.keys()):
        if name not in mine or name not in saved or mine[name].shape != saved[name].shape:
            raise InputError(
                f"The checkpoint {path} does not match this configuration: {name} differs. Resume with the same "
                "configuration, or choose another out_dir."
            )
    # Copied, not assigned: memory-mapped tensors may have another alignment, with which kernels round differently.
    network.load_state_dict(saved, strict=False)
