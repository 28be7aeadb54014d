"""Trainable weights of an embedder's network."""

import torch

from embed.network.network import Dense, Network
from embed.training.config import TrainEmbedderConfig
from gpt_core.model.gpt import GPT
from gpt_core.training import trainable


def choose_trainable(network: Network, config: TrainEmbedderConfig) -> None:
    """Set requires_grad of the network's weights as configured; weights without effect on the losses are frozen.

    Dense layers after the pooling are always trained: they are small, and often new.

    Raises:
        InputError: as `gpt_core.training.trainable.choose_trainable`.
    """
    gpt = network.gpt
    depth = gpt.config.n_layer if network.pooling.layer is None else network.pooling.layer
    # The language model's loss depends on the whole GPT, vectors only on the blocks up to the pooling.
    trainable.choose_trainable(gpt, config, depth, config.init_from, whole=config.lm_weight > 0)
    if config.trainable in ("full", "last-k") and (
        network.pooling.layer is None or network.pooling.final_norm
    ):
        gpt.norm.requires_grad_(True)
    network.dense.requires_grad_(True)


def plain_shell(network: Network) -> Network:
    """A network of the same shape without LoRA, on the meta device: gives the tensor names of the saved files."""
    with torch.device("meta"):
        shapes = [(layer.linear, layer.activation) for layer in network.dense_layers]
        dense = [Dense(x.in_features, x.out_features, x.bias is not None, a) for x, a in shapes]
        return Network(GPT(network.gpt.config), network.pooling, dense)
