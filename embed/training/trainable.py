"""Trainable weights of an embedder: all, the last blocks, low-rank updates (LoRA), or biases (BitFit)."""

import torch
from torch import Tensor, nn

from embed.network.network import Dense, Network
from embed.training.config import TrainEmbedderConfig
from gpt_core.common.errors import InputError
from gpt_core.common.extras import extra
from gpt_core.model.gpt import GPT

LORA_MATRICES = r".*\.(attn\.[qkvo]|mlp\.(up|gate|down))"


def choose_trainable(network: Network, config: TrainEmbedderConfig) -> None:
    """Set requires_grad of the network's weights as configured; weights without effect on the losses are frozen.

    Dense layers after the pooling are always trained: they are small, and often new.

    LoRA: Hu et al. 2021, by peft, on every matrix of the blocks. BitFit: Ben Zaken et al. 2022, as in SGPT.

    Raises:
        InputError: for bitfit with a GPT without biases, or a last_k above the number of blocks.
    """
    gpt = network.gpt
    depth = gpt.config.n_layer if network.pooling.layer is None else network.pooling.layer
    network.requires_grad_(False)
    if config.trainable == "full":
        # The language model's loss depends on the whole GPT, vectors only on the blocks up to the pooling.
        for part in gpt.children() if config.lm_weight else [gpt.wte, gpt.wpe, *gpt.blocks[:depth]]:
            if part is not None:
                part.requires_grad_(True)
    elif config.trainable == "last-k":
        if config.last_k > depth:
            raise InputError(
                f"last_k is {config.last_k}; expected at most {depth}, the number of blocks before the pooling."
            )
        gpt.blocks[depth - config.last_k : depth].requires_grad_(True)
    elif config.trainable == "bitfit":
        biases = [
            p for block in gpt.blocks[:depth] for n, p in block.named_parameters() if n.endswith("bias")
        ]
        if not biases:
            raise InputError(
                f"trainable is bitfit, but {config.init_from} has no biases to train; give lora, last-k or full."
            )
        for bias in biases:
            bias.requires_grad_(True)
    else:
        inject_lora(gpt.blocks[:depth], config)
    if config.trainable in ("full", "last-k") and (
        network.pooling.layer is None or network.pooling.final_norm
    ):
        gpt.norm.requires_grad_(True)
    network.dense.requires_grad_(True)


def inject_lora(blocks: nn.Module, config: TrainEmbedderConfig) -> None:
    """Add low-rank updates, initialised to zero, to every matrix of `blocks`.

    Raises:
        InputError: if peft is not installed.
    """
    with extra("train"):
        from peft import LoraConfig, inject_adapter_in_model
    lora = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=LORA_MATRICES)
    inject_adapter_in_model(lora, blocks)


def plain_shell(network: Network) -> Network:
    """A network of the same shape without LoRA, on the meta device: gives the tensor names of the saved files."""
    with torch.device("meta"):
        shapes = [(layer.linear, layer.activation) for layer in network.dense_layers]
        dense = [Dense(x.in_features, x.out_features, x.bias is not None, a) for x, a in shapes]
        return Network(GPT(network.gpt.config), network.pooling, dense)


def merge_lora(weights: dict[str, Tensor], config: TrainEmbedderConfig) -> dict[str, Tensor]:
    """Merge low-rank updates into the weights: W + alpha / rank · B·A.

    Args:
        weights: a state dict, with or without peft's names.
        config: provides lora_rank and lora_alpha.
    """
    merged = {}
    for name, tensor in weights.items():
        if ".lora_" in name:
            continue
        if name.endswith(".base_layer.weight"):
            place = name.removesuffix(".base_layer.weight")
            a, b = (weights[f"{place}.lora_{x}.default.weight"] for x in "AB")
            tensor = tensor + config.lora_alpha / config.lora_rank * (b @ a)
        merged[name.replace(".base_layer.", ".")] = tensor
    return merged
