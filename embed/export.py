"""The door that hands a model to other tools."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

from torch import nn

from embed.config import EmbedderConfig
from embed.folder import beyond_sentence_transformers, load_network, model_folder, save_embedder
from embed.network import Network
from gpt_core.errors import InputError
from gpt_core.files import atomic_folder, refuse_used
from gpt_core.hub import resolve
from gpt_core.tokenizer import Tokenizer


def export_model(out: str, /, *, model: str, to: Literal["sentence-transformers"]) -> None:
    """Write a model as another tool opens it, without code of ours.

    sentence-transformers gives the same vectors (cosine above 0.9999) for queries and documents, and so does what
    builds on it, mteb among them. An embedder that pools a lower layer through the final norm becomes a model of so
    many layers. A plain GPT becomes the embedder that it is here, the weighted mean of its last layer.

    Args:
        out: the folder to make; it must not exist or be empty.
        model: a model or embedder folder, a run's out_dir, or a known name.
        to: the tool.
    """
    target = Path(out)
    refuse_used(target)
    folder = resolve(model)
    config = EmbedderConfig.load(folder)
    tokenizer = Tokenizer.from_pretrained(model_folder(folder))
    network = load_network(folder, config)
    network, config = truncated(network, config)
    if reason := beyond_sentence_transformers(network.pooling, network.gpt.config):
        raise InputError(
            f"{model} cannot be exported to {to}: {reason}, for which there are no words there. Train it as an "
            "embedder, or write other settings into its embedder.json."
        )
    if config.corpus_map != "none":
        print(
            f"{model}: the {config.corpus_map} map that an index fits on its corpus is no part of a vector; "
            "whoever searches elsewhere does without it.",
            file=sys.stderr,
        )
    with atomic_folder(target) as scratch:
        save_embedder(scratch, network, config, tokenizer)
    print(f'{target}: SentenceTransformer("{target}") gives vectors of {network.dimension} numbers')


def truncated(network: Network, config: EmbedderConfig) -> tuple[Network, EmbedderConfig]:
    """A network that pools a lower layer through the final norm, without the blocks above; others as they are.

    The GPT is changed, not copied.
    """
    gpt, pooling = network.gpt, config.pooling
    if not pooling.layer or not pooling.final_norm:  # layer 0: a GPT has at least one block
        return network, config
    gpt.blocks = nn.ModuleList(list(gpt.blocks)[: pooling.layer])
    gpt.config = replace(gpt.config, n_layer=pooling.layer)
    config = replace(config, pooling=replace(pooling, layer=None, final_norm=False))
    return Network(gpt, config.pooling, network.dense_layers).eval(), config
