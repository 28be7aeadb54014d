"""What a training will take, before anybody rents a GPU: parameters, memory, speed, hours, tokens per parameter."""

import dataclasses
import os
from pathlib import Path

import torch

from gpt_core.data.batches import Windows, check_batch_sizes
from gpt_core.data.shards import Shard
from gpt_core.hardware.device import Numerics, pick_device, use_tf32
from gpt_core.hub.locate import resolve
from gpt_core.model.config import GPTConfig
from gpt_core.model.gpt import GPT
from gpt_core.tokenizer.tokenizer import Tokenizer
from gpt_core.training.monitoring.flops import PEAK_TFLOPS, flops_per_token
from gpt_core.training.numerics import choose_numerics
from gpt_core.training.pretraining.config import PretrainConfig
from gpt_core.training.pretraining.data import open_data
from gpt_core.training.pretraining.measure_step import Memory, Speed, measure

CHINCHILLA = 20  # training tokens per parameter that made the best use of arithmetic (Hoffmann et al. 2022)
MFU = 0.4  # share of its peak that a GPU is taken to reach
NARROW = 512  # width of a model below which it does not reach it
RENTED = ((1, "A100"), (8, "A100"), (8, "H100"))
MANY = 8  # ranks that sharding is shown for, unless torchrun started others


def dry_run(config: PretrainConfig) -> dict[str, float]:
    """Print what this training takes, from a few steps of its real model on random tokens; writes no file.

    While there is no data, the vocabulary is assumed. Under torchrun the first rank alone measures.

    Returns:
        The main figures: parameters, tokens_per_s and hours on this machine, tokens_per_parameter.

    Raises:
        InputError: for what training would refuse, too: shards of another tokenizer, batch sizes that do not divide.
    """
    if int(os.environ.get("RANK", 0)):
        return {}
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    start = config.batch_size_start or config.batch_size
    check_batch_sizes(config.batch_size, config.micro_batch_size, world_size, start, config.batch_ramp_iters)
    shape, vocabulary, windows = find_shape(config)
    block_size = config.block_size or shape.block_size
    share = config.batch_size // world_size
    micro_batch_size = config.micro_batch_size or share

    device = pick_device(config.device)
    use_tf32(config.tf32)
    n_local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    numerics = choose_numerics(config, device, n_local, shape.n_embd, micro_batch_size * block_size, None)
    torch.set_num_threads(numerics.threads)
    memory, speed = measure(config, shape, device, numerics, block_size, micro_batch_size)

    with torch.device("meta"):
        sizes = {name: p.numel() for name, p in GPT(shape).named_parameters()}
    n_parameters = sum(sizes.values())
    n_embedding = sum(n for name, n in sizes.items() if name.startswith(("wte", "wpe")))
    step_tokens = config.batch_size * block_size
    ramped = config.batch_ramp_iters * (config.batch_size - start) // 2  # sequences that the ramp leaves out
    n_tokens = step_tokens * config.max_iters - ramped * block_size
    tokens_per_s = step_tokens / (share * speed.sequence + speed.update)
    n_evaluations = -(-config.max_iters // config.eval_interval)
    n_evaluated = n_evaluations * windows["val"].n_targets if windows else 0
    # A forward takes a third of what it takes with its backward.
    seconds_evaluated = n_evaluated / block_size * speed.sequence / 3 / world_size
    seconds = n_tokens / tokens_per_s + seconds_evaluated

    print(
        f"model     {shape.model_type} graph: {shape.n_layer} layers, {shape.n_head} heads, {shape.n_embd} wide, "
        f"context {block_size:,}, vocabulary {shape.vocab_size:,} ({vocabulary})\n"
        f"          {n_parameters:,} parameters, {n_parameters - n_embedding:,} without embeddings\n"
        f"batch     {config.batch_size:,} sequences, {step_tokens:,} tokens a step: {_count(world_size, 'rank')} with "
        f"{_count(-(-share // micro_batch_size), 'micro-batch', 'es')} of {micro_batch_size:,}"
    )
    print_memory(memory, config, world_size, micro_batch_size, numerics)
    print_speed(speed, numerics, tokens_per_s, shape.n_layer, world_size)
    flops = n_tokens * flops_per_token(shape, block_size)
    rented = [f"{_hours(flops / (n * PEAK_TFLOPS[gpu] * 1e12 * MFU))} on {n}× {gpu}" for n, gpu in RENTED]
    elsewhere = f"{', '.join(rented)} at {MFU:.0%} of their peak"
    if shape.n_embd < NARROW:
        elsewhere = f"no estimate for large GPUs: matrices {shape.n_embd} wide leave them idle"
    evaluated = f" and {_count(n_evaluations, 'evaluation')}" if windows else ", evaluations not counted"
    print(
        f"time      {_hours(seconds)} here for {_count(config.max_iters, 'step')}{evaluated}\n"
        f"          {elsewhere}\n"
        f"tokens    {n_tokens:,} to learn from, {n_tokens / n_parameters:,.1f} per parameter; Chinchilla's "
        f"{CHINCHILLA} take {_count(round(CHINCHILLA * n_parameters / step_tokens), 'step')}"
    )
    if windows:
        n_data = windows["train"].n_targets
        print(f"data      {n_data:,} tokens in {config.data_dir}: {n_tokens / n_data:,.2f} epochs")
    else:
        print(f"data      none in {config.data_dir} yet; scripts/prepare_data.py makes it")
    return {
        "parameters": n_parameters,
        "tokens_per_s": tokens_per_s,
        "hours": seconds / 3600,
        "tokens_per_parameter": n_tokens / n_parameters,
    }


def find_shape(config: PretrainConfig) -> tuple[GPTConfig, str, dict[str, Windows]]:
    """The model's shape, whose vocabulary it has, and the windows of both splits, {} while there is no data.

    Raises:
        InputError: for data that training would refuse.
    """
    folder, splits = Path(config.data_dir), dict[str, list[Shard]]()
    tokenizer, vocabulary = None, "assumed, there is no tokenizer yet"
    if any(folder.glob("train*.bin")):
        tokenizer, splits = open_data(config)
    elif config.tokenizer is not None:
        tokenizer = Tokenizer.from_pretrained(config.tokenizer)
    if tokenizer is not None:
        vocabulary = f"of {config.tokenizer or folder}"
    if config.init_from == "scratch":
        shape = config.gpt_config(tokenizer)
    else:
        vocabulary = f"of {config.init_from}"
        source = resolve(config.init_from)
        shape = GPT.from_pretrained(source).config
        config.check_shape(shape, source)
        shape = dataclasses.replace(shape, dropout=config.dropout)
    block_size = config.block_size or shape.block_size
    windows = {name: Windows(shards, block_size, config.align_documents) for name, shards in splits.items()}
    return shape, vocabulary, windows


def print_memory(
    memory: Memory,
    config: PretrainConfig,
    world_size: int,
    micro_batch_size: int,
    numerics: Numerics,
) -> None:
    """Print what a rank needs, for each way of sharing a model."""
    state, working = 2 * memory.weights + memory.optimizer, memory.activations + memory.loss
    shared = world_size if world_size > 1 else MANY
    kernels = ", with a CPU's kernels, which keep more than a GPU's" if numerics.device == "cpu" else ""
    print(
        f"memory    weights {_size(memory.weights)}, gradients {_size(memory.weights)}, optimizer ({config.optimizer}) "
        f"{_size(memory.optimizer)}\n"
        f"          a micro-batch of {micro_batch_size:,} in {numerics.dtype}: about {_size(memory.activations)} of "
        f"activations and {_size(memory.loss)} for the loss, uncompiled{kernels}\n"
        f"          a rank that holds the model (ddp, or alone): {_size(state + working)}\n"
        f"          one of {shared} with fsdp2: {_size(state / shared + memory.gathered + working)}; with cpu_offload, "
        f"or deepspeed: {_size(memory.gathered + working)}, and {_size(state)} of CPU memory over all"
    )


def print_speed(speed: Speed, numerics: Numerics, tokens_per_s: float, n_layer: int, world_size: int) -> None:
    """Print the measured speed, and on what it was measured."""
    if speed.n_sequences == 0:
        how = f"reckoned from 2 of the {n_layer} blocks by their arithmetic, since all take too long or too much here"
    else:
        how = f"measured on {_count(speed.n_sequences, 'random sequence')} at a time"
        if speed.peak is not None:
            how += f", with {_size(speed.peak)} of memory at most"
    ranks = f", {world_size} ranks without their exchange" if world_size > 1 else ""
    compiled = "compiled, " if numerics.compile and speed.n_sequences else ""
    print(
        f"speed     {tokens_per_s:,.0f} tokens/s here: {numerics.device}, {numerics.dtype}, {compiled}"
        f"{_count(numerics.threads, 'thread')}{ranks}; {how}"
    )


def _count(n: int, what: str, plural: str = "s") -> str:
    return f"{n:,} {what}{'' if n == 1 else plural}"


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 2**30:,.2f} GiB" if n_bytes >= 2**28 else f"{n_bytes / 2**20:,.1f} MiB"


def _hours(seconds: float) -> str:
    """Hours, with days or minutes where they say more."""
    hours = seconds / 3600
    if hours >= 48:
        return f"{hours:,.0f} h ({hours / 24:,.1f} days)"
    return f"{hours:.1f} h" if hours >= 2 else f"{hours:.2g} h ({seconds / 60:.2g} min)"
