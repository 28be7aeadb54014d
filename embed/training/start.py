"""The network that a training starts from: an existing one, a new one, or blocks added to a table of token vectors."""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from embed.formats.folder import load_network, model_folder, pad_token_id
from embed.formats.settings import load_settings
from embed.formats.static import is_table, table_shape
from embed.network.config import TABLE, TABLE_POOLINGS, EmbedderConfig, Pooling
from embed.network.network import Dense, Network
from embed.training.config import TrainEmbedderConfig
from gpt_core.common.errors import InputError
from gpt_core.hub.locate import resolve
from gpt_core.model.config import GPTConfig
from gpt_core.model.gpt import GPT, Block
from gpt_core.tokenizer.tokenizer import Tokenizer

SCRATCH = "scratch"  # nanoGPT's name
# Length of the constant part of each token's state, relative to the mean length of the table's vectors.
CONSTANT_LENGTH = 3.0
# Dimensions of that part; the others that the table does not have are for the previous token.
CONSTANT_DIMENSIONS = 8
# Mean length of a token's vector per dimension (its root mean square) in the states. The mean over a text is a sixth of
# it or less, and what a block adds to all tokens alike counts in full there, so usual learning rates need long vectors
# (docs/log.md, 2026-11-29, blocks above a table).
TOKEN_SIZE = 8.0
# The head that attends to the previous token uses this many of RoPE's fastest angles and multiplies its scores by this:
# with heads of 64 dimensions the previous token gets 95 % of the attention, and no other of 500 more than 2 %.
PREVIOUS_ANGLES = 6
PREVIOUS_SHARPNESS = 3.0
LONGEST = 0.95  # of a token's vector, relative to the constant part; longer ones are shortened


def build(config: TrainEmbedderConfig) -> tuple[Network, EmbedderConfig, Tokenizer, bool]:
    """Build the network to train.

    Returns:
        The network, its settings, its tokenizer, and whether a new dense layer was added.

    Raises:
        InputError: for an n_layer, pooling_layer, dimension or matryoshka that does not fit the model.
    """
    if config.init_from == SCRATCH:
        network, settings, tokenizer = new_network(config)
        fresh = False
    else:
        network, settings, tokenizer, fresh = loaded(config)
    if config.matryoshka and config.matryoshka[-1] > network.dimension:
        raise InputError(
            f"matryoshka contains {config.matryoshka[-1]}, but the vectors have {network.dimension} dimensions; remove "
            "larger values."
        )
    query_prompt, document_prompt = config.query_prompt, config.document_prompt
    table = is_table(network.gpt.config)
    settings = replace(
        settings,
        pooling=network.pooling,
        corpus_map=settings.corpus_map if config.corpus_map is None else config.corpus_map,
        # sentence-transformers does not truncate texts for a table.
        max_tokens=None if table else min(config.max_tokens, network.gpt.config.block_size),
        query_prompt=settings.query_prompt if query_prompt is None else query_prompt,
        document_prompt=settings.document_prompt if document_prompt is None else document_prompt,
    )
    pad_token_id(tokenizer)  # checkpoints need it: raise an error now, not at the first checkpoint
    return network, settings, tokenizer, fresh


def new_network(config: TrainEmbedderConfig) -> tuple[Network, EmbedderConfig, Tokenizer]:
    """A network with random weights, of the shape and with the tokenizer that `config` names."""
    if config.tokenizer is None or config.n_layer is None or config.n_embd is None:
        raise InputError("init_from is scratch; give tokenizer (a folder), n_layer and n_embd as well.")
    tokenizer = Tokenizer.from_pretrained(resolve(config.tokenizer))
    if config.n_layer == 0:
        check_table_keys(config)
        gpt = GPT(table_shape(tokenizer.vocab_size, config.n_embd))
        pooling = TABLE_POOLINGS[config.pooling or TABLE.mode]
        return Network(gpt, pooling), EmbedderConfig(pooling=pooling), tokenizer
    gpt = GPT(shape(config, tokenizer.vocab_size, config.n_embd), init="zero")
    pooling = Pooling(config.pooling or "weightedmean")
    return Network(gpt, pooling, new_dense(config, config.n_embd)), EmbedderConfig(pooling=pooling), tokenizer


def check_table_keys(config: TrainEmbedderConfig) -> None:
    """Raise InputError for a pooling or dimension that a table, and blocks above it, cannot have."""
    if config.pooling not in (None, *TABLE_POOLINGS):
        raise InputError(
            f"pooling is {config.pooling}, but a table's vectors are means, and blocks above it start as the table; "
            f"give {' or '.join(TABLE_POOLINGS)}."
        )
    if config.dimension is not None:
        raise InputError(
            f"dimension is {config.dimension}, but a table's vectors have its own dimensions; omit dimension, or train "
            "a table with another n_embd."
        )


def shape(config: TrainEmbedderConfig, vocab_size: int, n_embd: int) -> GPTConfig:
    """Qwen3's graph with the sizes of `config`."""
    assert config.n_layer is not None
    return GPTConfig(
        vocab_size=vocab_size,
        block_size=config.max_tokens,
        n_layer=config.n_layer,
        n_head=config.n_head,
        n_kv_head=config.n_kv_head,  # type: ignore[arg-type]  # None: follows from the others
        n_embd=n_embd,
        head_dim=config.head_dim,  # type: ignore[arg-type]
        n_inner=config.n_inner,  # type: ignore[arg-type]
        dropout=config.dropout,
    )


def new_dense(config: TrainEmbedderConfig, n_in: int) -> list[Dense]:
    """A new dense layer to `config.dimension`, if that is another size."""
    return [] if config.dimension in (None, n_in) else [Dense(n_in, config.dimension)]


def loaded(config: TrainEmbedderConfig) -> tuple[Network, EmbedderConfig, Tokenizer, bool]:
    """The network of `init_from`, with the blocks, pooling and dimension that `config` asks for."""
    folder = resolve(config.init_from)
    tokenizer = Tokenizer.from_pretrained(model_folder(folder))
    if (folder / "modules.json").is_file() or (folder / "embedder.json").is_file():
        start, settings = load_network(folder), load_settings(folder)
    else:
        start, settings = Network(GPT.from_pretrained(model_folder(folder)), Pooling()), EmbedderConfig()
    if is_table(start.gpt.config):
        return *from_table(config, start, settings), tokenizer, False
    if config.n_layer == 0:
        raise InputError(
            f"n_layer is 0, but {config.init_from} has blocks; give at least 1, or init_from scratch."
        )
    for name in ("n_layer", "pooling_layer"):
        n = getattr(config, name)
        if n is not None and n > start.gpt.config.n_layer:
            raise InputError(
                f"{name} is {n}, but {config.init_from} has {start.gpt.config.n_layer} blocks; give at most "
                f"{start.gpt.config.n_layer}."
            )
    n_layer = config.n_layer or start.gpt.config.n_layer
    gpt = GPT(replace(start.gpt.config.with_blocks(n_layer), dropout=config.dropout))
    kept = gpt.state_dict()
    gpt.load_state_dict({name: w for name, w in start.gpt.state_dict().items() if name in kept})

    pooling = settings.pooling
    if (layer := config.n_layer or config.pooling_layer) is not None:
        whole = layer == n_layer
        pooling = replace(pooling, layer=None if whole else layer, final_norm=not whole)
    if config.pooling is not None:
        pooling = replace(pooling, mode=config.pooling)
    dense = start.dense_layers
    fresh = config.dimension not in (None, start.dimension)
    if fresh:
        if dense:
            raise InputError(
                f"dimension is {config.dimension}, but {config.init_from} already has a dense layer to "
                f"{start.dimension} dimensions; omit dimension."
            )
        dense = new_dense(config, start.dimension)
    return Network(gpt, pooling, dense), settings, tokenizer, fresh


def from_table(
    config: TrainEmbedderConfig, start: Network, settings: EmbedderConfig
) -> tuple[Network, EmbedderConfig]:
    """The table itself, or blocks above it that at first change nothing."""
    check_table_keys(config)
    if config.pooling is not None:
        start = Network(start.gpt, TABLE_POOLINGS[config.pooling], start.dense_layers)
    if not config.n_layer:
        return start, settings
    if start.dense_layers:
        raise InputError(f"{config.init_from} is a table with a dense layer; give a table without one.")
    table = start.gpt.wte.weight.detach()
    n_tokens, dimension = table.shape
    width = config.n_embd or dimension
    if width <= dimension:
        raise InputError(
            f"n_embd is {config.n_embd}, but blocks above {config.init_from} need more than its {dimension} "
            f"dimensions; give n_embd {dimension + 64}."
        )
    gpt = GPT(shape(config, n_tokens, width), init="zero")
    dense = Dense(width, dimension, bias=False)
    with torch.no_grad():
        place_table(gpt, dense, table)
    return Network(gpt, replace(start.pooling, layer=None), [dense]), settings


def place_table(gpt: GPT, dense: Dense, table: Tensor) -> None:
    """Set the weights of `gpt` and `dense` so that the mean of the states is that of the table's vectors.

    The final RMSNorm gives every state the same length, but a token's weight in the mean is the length of its vector.
    So each state gets a constant part in the dimensions that the table does not have, much longer than the vector: the
    norm then divides all states by nearly the same number, and the small difference is made up for here. The dense
    layer drops the constant part. A block that lengthens or shortens the constant part of a token's state changes the
    token's weight in the mean.

    The first head of the first block attends to the previous token and writes a projection of its vector into the rest
    of those dimensions, which the dense layer drops as well. The MLP of that block multiplies it with the token's
    own vector, so that its last projection, zero at first, has products of neighbouring tokens to choose from.

    Args:
        gpt: with zero weights in the last projection of attention and MLP; its final norm has the weights 1.
        dense: from the width of `gpt` to that of the table, without bias.
        table: (V, d).
    """
    d, width = table.shape[1], gpt.config.n_embd
    # Dimensions d to end are constant; the rest, if any, is for the previous token.
    end = d + min(CONSTANT_DIMENSIONS, (width - d + 1) // 2)
    table = table * (
        TOKEN_SIZE * math.sqrt(d) / table.norm(dim=1).mean()
    )  # vectors are normalised in the end
    lengths = table.norm(dim=1, keepdim=True)  # (V, 1)
    constant = CONSTANT_LENGTH * float(lengths.mean())
    # |x| for which norm(x, constant) has a first part of length |e| · √width / constant
    short = lengths.clamp(min=1e-9, max=LONGEST * constant)  # (V, 1)
    stretched = constant * short / (constant**2 - short**2).sqrt()  # (V, 1)
    gpt.wte.weight[:, :d] = table * stretched / lengths.clamp(min=1e-9)
    gpt.wte.weight[:, d:end] = constant / math.sqrt(end - d)
    gpt.wte.weight[:, end:] = 0
    dense.linear.weight.zero_()
    dense.linear.weight[:, :d].fill_diagonal_(constant / math.sqrt(width))
    # The blocks get inputs whose mean square is about 1, in all parts.
    for block in gpt.blocks:
        for name, weight in block.named_parameters():
            if name in ("norm1.weight", "norm2.weight"):
                weight[:] = constant / math.sqrt(width) / TOKEN_SIZE
                weight[d:end] = math.sqrt((end - d) / width)
            elif weight.dim() == 2 and name not in ("attn.o.weight", "mlp.down.weight"):
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
        if block is gpt.blocks[0] and end < width:
            read_previous_token(block, gpt.config, d, end)


def read_previous_token(block: nn.Module, config: GPTConfig, d: int, end: int) -> None:
    """Set a block's first head to attend to the previous token, and its MLP to multiply the two tokens' vectors.

    Queries and keys come from the constant part alone, so that only RoPE's angles tell positions apart: a query is a
    key turned back by one position.

    Args:
        block: of the GPT of `place_table`.
        config: of that GPT.
        d: number of the table's dimensions.
        end: end of the constant part.
    """
    assert isinstance(block, Block)
    head, attn, mlp = config.head_dim, block.attn, block.mlp
    assert isinstance(attn.q_norm, nn.RMSNorm)  # Qwen3's graph
    assert mlp.gate is not None
    n_angles = min(PREVIOUS_ANGLES, head // 2)
    angles = config.rope_theta ** (-2 * torch.arange(n_angles) / head)
    attn.q.weight[:head], attn.k.weight[:head] = 0, 0
    attn.k.weight[:n_angles, d:end] = 1
    attn.q.weight[:n_angles, d:end] = angles.cos()[:, None]
    attn.q.weight[head // 2 :][:n_angles, d:end] = -angles.sin()[:, None]
    attn.q_norm.weight.mul_(PREVIOUS_SHARPNESS)
    attn.v.weight[:head, d:] = 0
    n_kept = min(head, config.n_embd - end)
    attn.o.weight[end:, :n_kept].fill_diagonal_(TOKEN_SIZE)
    mlp.gate.weight[:, :end] = 0
    nn.init.normal_(mlp.gate.weight[:, end:], std=n_kept**-0.5)
    mlp.up.weight[:, d:] = 0
